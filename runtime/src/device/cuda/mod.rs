//! NVIDIA GPUs through the driver's interface alone: no toolkit is needed, neither to
//! build nor to run. A device has the GPU's primary context, which all of a process
//! share, and a stream for each lane, a module and memory of its own.

mod driver;
mod gpus;
mod graphs;
mod staging;

use super::{
    Clock, Device, Facts, GraphId, KernelId, Lane, Launch, MAP_BYTES, Mark, Node, Signal, TensorMap,
};
use crate::error::{Error, Result};
use crate::gpu::ptx_version;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use driver::{check, describe, failed, no_device};
pub use gpus::{Gpu, gpus};
use gpus::{attribute, count, facts};
use graphs::Graph;
use kiln_ir::DType;
use staging::Staging;
use std::collections::BTreeSet;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;

/// Dynamic shared memory that needs no permission, in bytes.
const PLAIN_SHARED: u32 = 48 << 10;
/// Bytes of the log of a module that is refused.
const LOG: usize = 16 << 10;
/// Launch parameters given as one block of bytes (`CU_LAUNCH_PARAM_*` of `cuda.h`).
const PARAM_END: *mut c_void = null_mut();
const PARAM_POINTER: usize = 1;
const PARAM_SIZE: usize = 2;

/// Where the driver writes a tensor map.
#[repr(C, align(64))]
struct AlignedMap([u8; MAP_BYTES]);

/// A new event of the current context.
fn event(kind: sys::CUevent_flags) -> Result<sys::CUevent> {
    let mut event = null_mut();
    // SAFETY: the place outlives the call.
    check(
        unsafe { sys::cuEventCreate(&mut event, kind as u32) },
        "making an event",
    )?;
    Ok(event)
}

/// What a launch says of its parameters; their `size` stays where it is until then.
fn parameters(l: &Launch, size: &mut usize) -> [*mut c_void; 5] {
    [
        PARAM_POINTER as *mut c_void,
        l.params.as_ptr().cast_mut().cast(),
        PARAM_SIZE as *mut c_void,
        (size as *mut usize).cast(),
        PARAM_END,
    ]
}

/// The shape of a launch's clusters.
fn cluster([x, y, z]: [u32; 3]) -> sys::CUlaunchAttributeValue {
    sys::CUlaunchAttributeValue {
        clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
    }
}

/// Page-locked memory for copies in one direction, made when it is first wanted.
fn staging(place: &mut Option<Staging>) -> Result<&mut Staging> {
    if place.is_none() {
        *place = Some(Staging::new()?);
    }
    place
        .as_mut()
        .ok_or_else(|| crate::error::Error::run("K0807", "there is no page-locked memory"))
}

/// A GPU in use by one session.
pub(super) struct Cuda {
    facts: Facts,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// By lane.
    streams: [sys::CUstream; 3],
    signals: Vec<sys::CUevent>,
    module: sys::CUmodule,
    kernels: Vec<sys::CUfunction>,
    memory: BTreeSet<u64>,
    /// Dynamic shared memory that a block may have, in bytes.
    most_shared: u32,
    /// For copies up and down.
    staging: [Option<Staging>; 2],
    marks: Vec<sys::CUevent>,
    /// How many of the marks are in use.
    marked: usize,
    graphs: Vec<Option<Graph>>,
}

// SAFETY: the driver's handles may be used by any thread that has made their context its
// current one, which every method does first.
unsafe impl Send for Cuda {}

impl Cuda {
    /// Opens the GPU of a number: K0801 without a driver, K0803 without such a GPU.
    pub(super) fn open(number: u32) -> Result<Cuda> {
        let version = driver::version()?;
        let count = count()?;
        if number >= count {
            let have = match count {
                1 => "one GPU, number 0".to_string(),
                n => format!("{n} GPUs, from 0 on"),
            };
            return Err(no_device(format!(
                "there is no GPU {number}: the driver has {have}"
            )));
        }
        let (device, gpu) = facts(number)?;
        let most_shared = attribute(
            device,
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?;
        let mut context = null_mut();
        // SAFETY: the place outlives the call; what is retained is released in `drop`.
        check(
            unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) },
            "opening the device's context",
        )?;
        let mut cuda = Cuda {
            facts: Facts {
                name: gpu.name,
                capability: Some(gpu.capability),
                driver: Some(version),
                clock: Clock::Time,
            },
            device,
            context,
            streams: [null_mut(); 3],
            signals: vec![],
            module: null_mut(),
            kernels: vec![],
            memory: BTreeSet::new(),
            most_shared,
            staging: [None, None],
            marks: vec![],
            marked: 0,
            graphs: vec![],
        };
        cuda.enter()?;
        let kind = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        for stream in &mut cuda.streams {
            // SAFETY: the place outlives the call.
            check(
                unsafe { sys::cuStreamCreate(stream, kind) },
                "making a stream",
            )?;
        }
        Ok(cuda)
    }

    /// Makes the context the calling thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until `drop`.
        check(
            unsafe { sys::cuCtxSetCurrent(self.context) },
            "entering the device's context",
        )
    }

    fn stream(&self, lane: Lane) -> sys::CUstream {
        self.streams[lane as usize]
    }

    /// What nodes of graphs refer to.
    fn place(&self) -> graphs::Place<'_> {
        graphs::Place {
            kernels: &self.kernels,
            context: self.context,
        }
    }

    fn held(&self, graph: &GraphId) -> Result<&Graph> {
        let graph = self.graphs[graph.0 as usize].as_ref();
        graph.ok_or_else(|| Error::run("K0807", "a graph that was forgotten is used"))
    }

    fn release(&mut self) -> Result<()> {
        self.enter()?;
        self.staging = [None, None];
        // SAFETY: the handles are this device's own, and none is used after this. A stream
        // that was not made is null, which is the context's own stream.
        unsafe {
            for stream in self.streams {
                sys::cuStreamSynchronize(stream).result().ok();
            }
            self.graphs.clear();
            for event in self.marks.drain(..).chain(self.signals.drain(..)) {
                sys::cuEventDestroy_v2(event).result().ok();
            }
            for at in std::mem::take(&mut self.memory) {
                sys::cuMemFree_v2(at).result().ok();
            }
            if !self.module.is_null() {
                sys::cuModuleUnload(self.module).result().ok();
            }
            for stream in self.streams.into_iter().filter(|s| !s.is_null()) {
                sys::cuStreamDestroy_v2(stream).result().ok();
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device).result().ok();
        }
        Ok(())
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A device that is lost has nothing left to give back.
        let _ = self.release();
    }
}

impl Device for Cuda {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Result<Option<(usize, usize)>> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places outlive the call.
        check(
            unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) },
            "reading free memory",
        )?;
        Ok(Some((free, total)))
    }

    fn alloc(&mut self, bytes: usize) -> Result<u64> {
        self.enter()?;
        let mut at = 0;
        // SAFETY: the place outlives the call; memory of no bytes is not given.
        let code = unsafe { sys::cuMemAlloc_v2(&mut at, bytes.max(1)) };
        if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let room = match self.memory()? {
                Some((free, total)) => format!(": {free} of its {total} bytes are free"),
                None => String::new(),
            };
            let name = &self.facts.name;
            let message = format!("{name} has no memory for {bytes} more bytes{room}");
            return Err(Error::run("K0806", message)
                .help("give smaller inputs, or end what else uses the device"));
        }
        check(code, "allocating memory")?;
        self.memory.insert(at);
        Ok(at)
    }

    fn free(&mut self, at: u64) -> Result<()> {
        if !self.memory.remove(&at) {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the memory is this device's; the driver waits for work that uses it.
        check(unsafe { sys::cuMemFree_v2(at) }, "freeing memory")
    }

    /// The driver does not notice.
    fn discard(&mut self, _at: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn signal(&mut self, lane: Lane, reuse: Option<Signal>) -> Result<Signal> {
        self.enter()?;
        let signal = match reuse {
            Some(signal) => signal,
            None => {
                self.signals
                    .push(event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?);
                Signal(self.signals.len() as u32 - 1)
            }
        };
        let event = self.signals[signal.0 as usize];
        // SAFETY: event and stream are this device's. Who waits for what the event said
        // before goes on waiting for that.
        check(
            unsafe { sys::cuEventRecord(event, self.stream(lane)) },
            "recording an event",
        )?;
        Ok(signal)
    }

    fn after(&mut self, lane: Lane, signal: Signal) -> Result<()> {
        self.enter()?;
        let event = self.signals[signal.0 as usize];
        // SAFETY: as above.
        check(
            unsafe { sys::cuStreamWaitEvent(self.stream(lane), event, 0) },
            "waiting for an event",
        )
    }

    fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let stream = self.stream(Lane::Up);
        if bytes.len() >= staging::LARGE {
            return staging(&mut self.staging[0])?.upload(to, bytes, stream);
        }
        // SAFETY: pageable memory is copied before the call returns.
        check(
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream) },
            "copying to the device",
        )
    }

    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        let stream = self.stream(Lane::Down);
        if bytes.len() >= staging::LARGE {
            return staging(&mut self.staging[1])?.download(from, bytes, stream);
        }
        // SAFETY: the bytes are borrowed until the stream is waited for.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            let code = sys::cuMemcpyDtoHAsync_v2(to, from, bytes.len(), stream);
            check(code, "copying from the device")?;
            check(sys::cuStreamSynchronize(stream), "waiting for the device")
        }
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: addresses of device memory, which the driver checks.
        check(
            unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream(Lane::Compute)) },
            "copying on the device",
        )
    }

    fn fill(&mut self, at: u64, bytes: usize, value: u8) -> Result<()> {
        self.enter()?;
        // SAFETY: as above.
        check(
            unsafe { sys::cuMemsetD8Async(at, value, bytes, self.stream(Lane::Compute)) },
            "filling memory",
        )
    }

    fn load(&mut self, ptx: &str) -> Result<()> {
        self.enter()?;
        if let (Some((ptx, needs)), Some(driver)) = (ptx_version(ptx), self.facts.driver)
            && driver < needs
        {
            let message = format!(
                "the code is PTX {}.{}, which drivers of CUDA {}.{} and later read, and this one is of CUDA {}.{}",
                ptx.0, ptx.1, needs.0, needs.1, driver.0, driver.1
            );
            return Err(Error::run("K0802", message).help(
                "install a newer driver, or compile with --target sm_80, whose PTX is the oldest",
            ));
        }
        let text = CString::new(ptx).map_err(|_| {
            Error::input("K0805", "the PTX holds a byte of 0").help("compile the model again")
        })?;
        let mut log = vec![0u8; LOG];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The size is given as the pointer's value.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG as *mut c_void];
        // SAFETY: text, log and options outlive the call; the log's size is its own.
        let code = unsafe {
            sys::cuModuleLoadDataEx(
                &mut self.module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if code != sys::CUresult::CUDA_SUCCESS {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            let message = format!(
                "{} refuses the PTX: {}\n{}",
                self.facts.name,
                describe(code),
                log.trim()
            );
            return Err(Error::run("K0805", message.trim())
                .help("a newer driver may read it; if not, this is a bug of a kernel"));
        }
        Ok(())
    }

    fn kernel(&mut self, name: &str, shared: u32) -> Result<KernelId> {
        self.enter()?;
        if shared > self.most_shared {
            let (most, device) = (self.most_shared, &self.facts.name);
            let message = format!(
                "the kernel `{name}` asks for {shared} bytes of shared memory, and {device} has {most} a block"
            );
            return Err(Error::run("K0804", message)
                .help("compile for the device's own target, see `kiln doctor`"));
        }
        let text = CString::new(name).unwrap_or_default();
        let mut function = null_mut();
        // SAFETY: the module is loaded, or null, which the driver refuses.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) };
        if code != sys::CUresult::CUDA_SUCCESS {
            let message = format!("the artifact's PTX lacks the kernel `{name}`");
            return Err(Error::input("K0705", message).help("compile the model again"));
        }
        if shared > PLAIN_SHARED {
            let what = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of the loaded module.
            let code = unsafe { sys::cuFuncSetAttribute(function, what, shared as i32) };
            check(code, &format!("asking for shared memory for `{name}`"))?;
        }
        self.kernels.push(function);
        Ok(KernelId(self.kernels.len() as u32 - 1))
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u8; MAP_BYTES]> {
        use sys::CUtensorMapDataType as Type;
        self.enter()?;
        let dtype = match map.dtype {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            // Their bits, tf32 or not.
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            // Bytes are copied as they are.
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let steps = vec![1; map.tile.len()];
        let mut out = AlignedMap([0; MAP_BYTES]);
        // SAFETY: the arrays have an element for each dimension (one less of strides), the
        // place is as large and as aligned as a map; the driver checks what they say.
        check(
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    (&raw mut out).cast(),
                    dtype,
                    map.sizes.len() as u32,
                    map.address as *mut c_void,
                    map.sizes.as_ptr(),
                    map.strides.as_ptr(),
                    map.tile.as_ptr(),
                    steps.as_ptr(),
                    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            },
            "describing a tensor",
        )?;
        Ok(out.0)
    }

    fn launch(&mut self, l: &Launch) -> Result<Option<serde_json::Value>> {
        self.enter()?;
        let mut shape = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: Default::default(),
            value: cluster(l.cluster),
        };
        let config = sys::CUlaunchConfig {
            gridDimX: l.grid[0],
            gridDimY: l.grid[1],
            gridDimZ: l.grid[2],
            blockDimX: l.block[0],
            blockDimY: l.block[1],
            blockDimZ: l.block[2],
            sharedMemBytes: l.shared,
            hStream: self.stream(Lane::Compute),
            attrs: &mut shape,
            // Devices before Hopper know no clusters.
            numAttrs: (l.cluster != [1; 3]) as u32,
        };
        let mut size = l.params.len();
        let mut extra = parameters(l, &mut size);
        let function = self.kernels[l.kernel.0 as usize];
        // SAFETY: configuration and parameters are read before this returns.
        let code =
            unsafe { sys::cuLaunchKernelEx(&config, function, null_mut(), extra.as_mut_ptr()) };
        match code {
            sys::CUresult::CUDA_SUCCESS => Ok(None),
            code => Err(failed(code, &format!("starting the kernel of {}", l.label))),
        }
    }

    fn checks_windows(&self) -> bool {
        false
    }

    fn wait(&mut self) -> Result<()> {
        self.enter()?;
        for stream in self.streams {
            // SAFETY: the stream is this device's.
            check(
                unsafe { sys::cuStreamSynchronize(stream) },
                "waiting for the device",
            )?;
        }
        Ok(())
    }

    fn mark(&mut self, lane: Lane) -> Result<Mark> {
        self.enter()?;
        if self.marked == self.marks.len() {
            self.marks
                .push(event(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        }
        // SAFETY: event and stream are this device's.
        check(
            unsafe { sys::cuEventRecord(self.marks[self.marked], self.stream(lane)) },
            "recording an event",
        )?;
        self.marked += 1;
        Ok(Mark(self.marked as u32 - 1))
    }

    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<u64> {
        self.enter()?;
        let (from, to) = (self.marks[from.0 as usize], self.marks[to.0 as usize]);
        let mut ms = 0.0f32;
        // SAFETY: events of this device, both recorded.
        unsafe {
            check(sys::cuEventSynchronize(to), "waiting for an event")?;
            check(
                sys::cuEventElapsedTime(&mut ms, from, to),
                "reading an event's time",
            )?;
        }
        Ok((ms.max(0.0) as f64 * 1e6) as u64)
    }

    fn forget_marks(&mut self) {
        self.marked = 0;
    }

    fn graph(&mut self, nodes: &[Node]) -> Result<GraphId> {
        self.enter()?;
        let graph = Some(Graph::new(nodes, &self.place())?);
        // Places of forgotten graphs are used again.
        let free = self.graphs.iter().position(Option::is_none);
        let place = free.unwrap_or(self.graphs.len());
        match self.graphs.get_mut(place) {
            Some(slot) => *slot = graph,
            None => self.graphs.push(graph),
        }
        Ok(GraphId(place as u32))
    }

    fn update(&mut self, graph: &GraphId, at: usize, node: &Node) -> Result<bool> {
        self.enter()?;
        self.held(graph)?.update(at, node, &self.place())
    }

    fn replay(&mut self, graph: &GraphId) -> Result<()> {
        self.enter()?;
        self.held(graph)?.start(self.stream(Lane::Compute))
    }

    fn forget(&mut self, graph: GraphId) {
        let entered = self.enter();
        let graph = self.graphs[graph.0 as usize].take();
        // Without its context it cannot be given back.
        if entered.is_err() {
            std::mem::forget(graph);
        }
    }
}
