//! The PTX interpreter as a device. Its memory is its own, so a transfer that is missing
//! is a fault, and it reads nothing that nothing wrote. Work is done when it is given;
//! whether a device that does it later would do the same is what [`Order`] looks at.

use super::lanes::{Order, Part};
use super::{
    Clock, Device, Facts, GraphId, KernelId, Lane, Launch, MAP_BYTES, Mark, Node, Signal,
    TensorMap, Window,
};
use crate::error::{Error, Result};
use crate::sim;
use kiln_ir::DType;
use std::time::Instant;

/// A simulated GPU.
pub(super) struct Sim {
    facts: Facts,
    memory: sim::Memory,
    module: Option<sim::Module>,
    kernels: Vec<String>,
    order: Order,
    marks: Vec<Instant>,
    graphs: Vec<Option<Vec<Node>>>,
}

impl Sim {
    pub(super) fn new() -> Sim {
        Sim {
            facts: Facts {
                name: "a PTX interpreter".into(),
                capability: None,
                driver: None,
                clock: Clock::Counts,
            },
            memory: sim::Memory::new(),
            module: None,
            kernels: vec![],
            order: Order::default(),
            marks: vec![],
            graphs: vec![],
        }
    }

    fn run(&mut self, l: &Launch) -> Result<Option<serde_json::Value>> {
        let part = |w: &Window| Part {
            at: w.at,
            len: w.len,
            writes: w.writable,
        };
        let parts: Vec<Part> = l.windows.iter().map(part).collect();
        let what = format!("the kernel of {}", l.label);
        self.order.operation(Lane::Compute, &parts, &what)?;
        let windows = l.windows.iter().map(|w| sim::Window {
            start: w.at,
            len: w.len,
            writable: w.writable,
        });
        let launch = sim::Launch {
            grid: l.grid,
            block: l.block,
            cluster: l.cluster,
            shared: l.shared,
            windows: windows.collect(),
            ..Default::default()
        };
        let name = &self.kernels[l.kernel.0 as usize];
        let module = self.module.as_ref();
        let found = module.and_then(|m| Some((m, m.kernel(name)?)));
        let (module, kernel) = found.ok_or_else(|| lacks(name))?;
        let report = sim::launch(module, &mut self.memory, kernel, &launch, &l.params);
        let report = report.map_err(|fault| {
            let mut e = Error::from(fault);
            e.message = format!("{}: {}", l.label, e.message);
            e
        })?;
        Ok(serde_json::to_value(report).ok())
    }
}

fn part(at: u64, len: usize, writes: bool) -> Part {
    let len = len as u64;
    Part { at, len, writes }
}

impl From<&TensorMap> for sim::TensorMap {
    fn from(map: &TensorMap) -> sim::TensorMap {
        sim::TensorMap {
            dtype: match map.dtype {
                DType::F16 => sim::TensorType::F16,
                DType::BF16 => sim::TensorType::Bf16,
                DType::F32 => sim::TensorType::F32,
                // Bytes are copied as they are.
                _ => sim::TensorType::U8,
            },
            address: map.address,
            sizes: map.sizes.clone(),
            strides: map.strides.clone(),
            boxes: map.tile.clone(),
            steps: vec![1; map.tile.len()],
            swizzle: sim::Swizzle::B128,
            nan: false,
        }
    }
}

fn lacks(kernel: &str) -> Error {
    let message = format!("the artifact's PTX lacks the kernel `{kernel}`");
    Error::input("K0705", message).help("compile the model again")
}

/// A graph that is asked for what none can do.
fn misused(what: &str) -> Error {
    Error::run("K0807", what).help("this is a bug of the runtime")
}

impl Device for Sim {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Result<Option<(usize, usize)>> {
        Ok(None)
    }

    fn alloc(&mut self, bytes: usize) -> Result<u64> {
        self.memory.try_alloc(bytes).map_err(|e| {
            let message = format!("the host has no memory for {bytes} bytes of a simulated device");
            Error {
                code: "K0806",
                message,
                ..e
            }
        })
    }

    fn free(&mut self, at: u64) -> Result<()> {
        self.order.wait_all();
        self.memory.free(at);
        Ok(())
    }

    fn discard(&mut self, at: u64, bytes: usize) -> Result<()> {
        let parts = [part(at, bytes, true)];
        self.order.of_host(&parts, "forgetting memory")?;
        self.memory.forget(at, bytes)
    }

    fn signal(&mut self, lane: Lane, reuse: Option<Signal>) -> Result<Signal> {
        Ok(Signal(self.order.signal(lane, reuse.map(|s| s.0))))
    }

    fn after(&mut self, lane: Lane, signal: Signal) -> Result<()> {
        self.order.after(lane, signal.0);
        Ok(())
    }

    fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        let n = bytes.len();
        let what = format!("a copy of {n} bytes from the host");
        self.order
            .operation(Lane::Up, &[part(to, n, true)], &what)?;
        self.memory.write(to, bytes)
    }

    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        let n = bytes.len();
        let what = format!("a copy of {n} bytes to the host");
        let parts = [part(from, n, false)];
        self.order.operation(Lane::Down, &parts, &what)?;
        self.order.wait(Lane::Down);
        if !self.memory.written(from, n)? {
            let message =
                format!("{n} bytes at {from:#x} are read by the host, and not all were written");
            return Err(
                Error::run("K0807", message).help("this is a bug of a kernel or of the plan")
            );
        }
        self.memory.read(from, bytes)
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let parts = [part(from, bytes, false), part(to, bytes, true)];
        let what = format!("a copy of {bytes} bytes on the device");
        self.order.operation(Lane::Compute, &parts, &what)?;
        self.memory.copy(to, from, bytes)
    }

    fn fill(&mut self, at: u64, bytes: usize, value: u8) -> Result<()> {
        let parts = [part(at, bytes, true)];
        let what = format!("filling {bytes} bytes");
        self.order.operation(Lane::Compute, &parts, &what)?;
        self.memory.write(at, &vec![value; bytes])
    }

    fn load(&mut self, ptx: &str) -> Result<()> {
        let module = sim::Module::parse(ptx).map_err(|e| {
            let message = format!("the PTX is refused: {}", e.message);
            Error {
                code: "K0805",
                message,
                ..e
            }
        })?;
        self.module = Some(module);
        Ok(())
    }

    fn kernel(&mut self, name: &str, _shared: u32) -> Result<KernelId> {
        if self.module.as_ref().and_then(|m| m.kernel(name)).is_none() {
            return Err(lacks(name));
        }
        self.kernels.push(name.into());
        Ok(KernelId(self.kernels.len() as u32 - 1))
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u8; MAP_BYTES]> {
        sim::TensorMap::from(map).encode()
    }

    fn launch(&mut self, l: &Launch) -> Result<Option<serde_json::Value>> {
        self.run(l)
    }

    fn checks_windows(&self) -> bool {
        true
    }

    fn wait(&mut self) -> Result<()> {
        self.order.wait_all();
        Ok(())
    }

    fn mark(&mut self, _lane: Lane) -> Result<Mark> {
        self.marks.push(Instant::now());
        Ok(Mark(self.marks.len() as u32 - 1))
    }

    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<u64> {
        let at = |m: Mark| self.marks[m.0 as usize];
        Ok(at(to).saturating_duration_since(at(from)).as_nanos() as u64)
    }

    fn forget_marks(&mut self) {
        self.marks.clear();
    }

    fn graph(&mut self, nodes: &[Node]) -> Result<GraphId> {
        let nodes = Some(nodes.to_vec());
        // Places of forgotten graphs are used again.
        let free = self.graphs.iter().position(Option::is_none);
        let place = free.unwrap_or(self.graphs.len());
        match self.graphs.get_mut(place) {
            Some(slot) => *slot = nodes,
            None => self.graphs.push(nodes),
        }
        Ok(GraphId(place as u32))
    }

    fn update(&mut self, graph: &GraphId, at: usize, node: &Node) -> Result<bool> {
        let nodes = self.graphs[graph.0 as usize].as_mut();
        let held = nodes.and_then(|nodes| nodes.get_mut(at));
        let held = held.ok_or_else(|| misused("a node that is in no graph is updated"))?;
        if !held.alike(node) {
            return Err(misused("a node is given work of another kind"));
        }
        *held = node.clone();
        Ok(true)
    }

    fn replay(&mut self, graph: &GraphId) -> Result<()> {
        let place = graph.0 as usize;
        let nodes = self.graphs[place].take();
        let nodes = nodes.ok_or_else(|| misused("a graph that was forgotten is replayed"))?;
        let done = nodes.iter().try_for_each(|node| node.give(self));
        self.graphs[place] = Some(nodes);
        done
    }

    fn forget(&mut self, graph: GraphId) {
        self.graphs[graph.0 as usize] = None;
    }
}
