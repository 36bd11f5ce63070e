//! NVIDIA's driver: opened when it is first asked for; what it lacks and what it
//! refuses, as errors.
//!
//! The bindings panic where the library or a function of it is missing, so both are
//! looked for before anything is called.

use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CStr;
use std::sync::OnceLock;

/// Every function that this module's users call.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuTensorMapEncodeTiled",
    "cuLaunchKernelEx",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
    "cuGraphCreate",
    "cuGraphAddKernelNode_v2",
    "cuGraphAddMemcpyNode",
    "cuGraphKernelNodeSetAttribute",
    "cuGraphInstantiateWithFlags",
    "cuGraphExecKernelNodeSetParams_v2",
    "cuGraphExecMemcpyNodeSetParams",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// What to do where there is no driver.
const NO_DRIVER: &str = "install NVIDIA's driver, or run with --device cpu";

/// The driver's CUDA version, major and minor; it is opened and started first.
pub(super) fn version() -> Result<(u32, u32)> {
    static VERSION: OnceLock<Result<(u32, u32)>> = OnceLock::new();
    VERSION.get_or_init(start).clone()
}

fn start() -> Result<(u32, u32)> {
    // SAFETY: opening NVIDIA's library runs its initialisers, which is what is asked for.
    if !unsafe { sys::is_culib_present() } {
        let message = "there is no NVIDIA driver: libcuda.so.1 is not found";
        return Err(Error::run("K0801", message).help(NO_DRIVER));
    }
    // SAFETY: the library was found just now. The symbols are looked up, not called.
    let missing = unsafe {
        let library = sys::culib();
        let there = |name: &&str| {
            library
                .get::<unsafe extern "C" fn()>(name.as_bytes())
                .is_ok()
        };
        FUNCTIONS.iter().find(|name| !there(name))
    };
    if let Some(name) = missing {
        let message = format!("NVIDIA's driver is too old: it lacks {name}");
        return Err(Error::run("K0802", message).help("install a driver of CUDA 12.0 or later"));
    }
    // SAFETY: no preconditions.
    let started = unsafe { sys::cuInit(0) };
    match started {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(no_device("NVIDIA's driver finds no GPU")),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            let message =
                "the libcuda.so that is found is a toolkit's stub, and not NVIDIA's driver";
            return Err(Error::run("K0801", message).help(NO_DRIVER));
        }
        code => {
            let message = format!("NVIDIA's driver does not start: {}", describe(code));
            return Err(Error::run("K0801", message)
                .help("see what `nvidia-smi` says, or run with --device cpu"));
        }
    }
    let mut version = 0;
    // SAFETY: the place outlives the call.
    check(
        unsafe { sys::cuDriverGetVersion(&mut version) },
        "reading the driver's version",
    )?;
    let version = version.max(0) as u32;
    Ok((version / 1000, version % 1000 / 10))
}

/// There is no such device.
pub(super) fn no_device(message: impl Into<String>) -> Error {
    Error::run("K0803", message).help(
        "`kiln doctor` lists the devices; CUDA_VISIBLE_DEVICES may hide some; --device cpu needs none",
    )
}

/// An error of the driver while it did something.
pub(super) fn check(code: CUresult, what: &str) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(failed(code, what)),
    }
}

pub(super) fn failed(code: CUresult, what: &str) -> Error {
    let error = Error::run("K0807", format!("{what} failed: {}", describe(code)));
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::run(
            "K0806",
            format!("{what} failed: the device has no memory for it"),
        )
        .help("give smaller inputs, or end what else uses the device"),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION => error.help(
            "this is a bug of a kernel: `--device sim` names the instruction; the process has to be started again before it can use the device",
        ),
        CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES | CUresult::CUDA_ERROR_INVALID_VALUE => {
            error.help("compile for the device's own target, see `kiln doctor`")
        }
        _ => error.help("see what `nvidia-smi` says of the device"),
    }
}

/// A code's name, number and text.
pub(super) fn describe(code: CUresult) -> String {
    type Lookup = unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult;
    let text = |lookup: Lookup| {
        let mut at = std::ptr::null();
        // SAFETY: the place outlives the call; the text is the driver's and stays.
        unsafe {
            let found = lookup(code, &mut at) == CUresult::CUDA_SUCCESS && !at.is_null();
            found.then(|| CStr::from_ptr(at).to_string_lossy().into_owned())
        }
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| "an unknown error".into());
    let what = text(sys::cuGetErrorString).unwrap_or_default();
    format!("{name} ({}), {what}", code as u32)
}
