//! The PTX interpreter as a device. Its memory is its own, so a transfer that is missing
//! is a fault, and it reads nothing that nothing wrote. Work is done when it is given;
//! whether a device that does it later would do the same is what [`Order`] looks at.

use super::lanes::{Order, Part};
use super::{
    Clock, Device, Facts, GraphId, KernelId, Lane, Launch, MAP_BYTES, Mark, Signal, TensorMap,
};
use crate::error::{Error, Result};
use crate::sim;
use kiln_ir::DType;
use std::time::Instant;

/// What is recorded.
enum Command {
    Copy(u64, u64, usize),
    Fill(u64, usize, u8),
    Launch {
        kernel: KernelId,
        launch: sim::Launch,
        params: Vec<u8>,
        label: String,
    },
}

/// A simulated GPU.
pub(super) struct Sim {
    facts: Facts,
    memory: sim::Memory,
    module: Option<sim::Module>,
    kernels: Vec<String>,
    order: Order,
    marks: Vec<Instant>,
    recording: Option<Vec<Command>>,
    graphs: Vec<Option<Vec<Command>>>,
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
            recording: None,
            graphs: vec![],
        }
    }

    fn run(&mut self, command: &Command) -> Result<Option<serde_json::Value>> {
        let (parts, what) = command.touches();
        self.order.operation(Lane::Compute, &parts, &what)?;
        match command {
            Command::Copy(from, to, bytes) => self.memory.copy(*to, *from, *bytes)?,
            Command::Fill(at, bytes, value) => self.memory.write(*at, &vec![*value; *bytes])?,
            Command::Launch {
                kernel,
                launch,
                params,
                label,
            } => {
                let name = &self.kernels[kernel.0 as usize];
                let module = self.module.as_ref();
                let found = module.and_then(|m| Some((m, m.kernel(name)?)));
                let (module, kernel) = found.ok_or_else(|| lacks(name))?;
                let report = sim::launch(module, &mut self.memory, kernel, launch, params);
                let report = report.map_err(|fault| {
                    let mut e = Error::from(fault);
                    e.message = format!("{label}: {}", e.message);
                    e
                })?;
                return Ok(serde_json::to_value(report).ok());
            }
        }
        Ok(None)
    }

    /// Does a command, or records it.
    fn give(&mut self, command: Command) -> Result<Option<serde_json::Value>> {
        match &mut self.recording {
            Some(commands) => {
                commands.push(command);
                Ok(None)
            }
            None => self.run(&command),
        }
    }
}

impl Command {
    /// What it touches, and what it is for people.
    fn touches(&self) -> (Vec<Part>, String) {
        let part = |at, len, writes| Part { at, len, writes };
        match self {
            Command::Copy(from, to, bytes) => {
                let n = *bytes as u64;
                let parts = vec![part(*from, n, false), part(*to, n, true)];
                (parts, format!("a copy of {n} bytes on the device"))
            }
            Command::Fill(at, bytes, _) => {
                let what = format!("filling {bytes} bytes");
                (vec![part(*at, *bytes as u64, true)], what)
            }
            Command::Launch { launch, label, .. } => {
                let windows = launch.windows.iter();
                let parts = windows.map(|w| part(w.start, w.len, w.writable));
                (parts.collect(), format!("the kernel of {label}"))
            }
        }
    }
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

/// What cannot be recorded.
fn unrecorded(what: &str) -> Error {
    Error::run("K0807", format!("{what} cannot be recorded"))
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
        let part = Part {
            at,
            len: bytes as u64,
            writes: true,
        };
        self.order.of_host(&[part], "forgetting memory")?;
        self.memory.forget(at, bytes)
    }

    fn signal(&mut self, lane: Lane, reuse: Option<Signal>) -> Result<Signal> {
        match self.recording {
            Some(_) => Err(unrecorded("a signal")),
            None => Ok(Signal(self.order.signal(lane, reuse.map(|s| s.0)))),
        }
    }

    fn after(&mut self, lane: Lane, signal: Signal) -> Result<()> {
        if self.recording.is_some() {
            return Err(unrecorded("waiting for another lane"));
        }
        self.order.after(lane, signal.0);
        Ok(())
    }

    fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        match self.recording {
            Some(_) => Err(unrecorded("a copy from the host")),
            None => {
                let n = bytes.len();
                let part = Part {
                    at: to,
                    len: n as u64,
                    writes: true,
                };
                let what = format!("a copy of {n} bytes from the host");
                self.order.operation(Lane::Up, &[part], &what)?;
                self.memory.write(to, bytes)
            }
        }
    }

    fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        if self.recording.is_some() {
            return Err(unrecorded("a copy to the host"));
        }
        let part = Part {
            at: from,
            len: bytes.len() as u64,
            writes: false,
        };
        let what = format!("a copy of {} bytes to the host", bytes.len());
        self.order.operation(Lane::Down, &[part], &what)?;
        self.order.wait(Lane::Down);
        if !self.memory.written(from, bytes.len())? {
            let n = bytes.len();
            let message =
                format!("{n} bytes at {from:#x} are read by the host, and not all were written");
            return Err(
                Error::run("K0807", message).help("this is a bug of a kernel or of the plan")
            );
        }
        self.memory.read(from, bytes)
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.give(Command::Copy(from, to, bytes)).map(|_| ())
    }

    fn fill(&mut self, at: u64, bytes: usize, value: u8) -> Result<()> {
        self.give(Command::Fill(at, bytes, value)).map(|_| ())
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
        self.give(Command::Launch {
            kernel: l.kernel,
            launch,
            params: l.params.to_vec(),
            label: l.label.into(),
        })
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

    fn record(&mut self) -> Result<()> {
        self.recording = Some(vec![]);
        Ok(())
    }

    fn recorded(&mut self) -> Result<GraphId> {
        let commands = self.recording.take();
        let commands = commands.ok_or_else(|| unrecorded("what was not begun"))?;
        // Places of forgotten graphs are used again.
        let free = self.graphs.iter().position(Option::is_none);
        let place = free.unwrap_or(self.graphs.len());
        match self.graphs.get_mut(place) {
            Some(slot) => *slot = Some(commands),
            None => self.graphs.push(Some(commands)),
        }
        Ok(GraphId(place as u32))
    }

    fn abandon(&mut self) {
        self.recording = None;
    }

    fn replay(&mut self, graph: &GraphId) -> Result<()> {
        let place = graph.0 as usize;
        let commands = self.graphs[place].take().unwrap_or_default();
        let done = commands.iter().try_for_each(|c| self.run(c).map(|_| ()));
        self.graphs[place] = Some(commands);
        done
    }

    fn forget(&mut self, graph: GraphId) {
        self.graphs[graph.0 as usize] = None;
    }
}
