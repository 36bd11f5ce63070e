//! A kernel with what launching and checking it takes, and its description as JSON.

use kiln_codegen::GpuTarget;
use kiln_ir::{Binding, DType, Dim};
use kiln_kernels::cuda::cost::predict;
use kiln_kernels::cuda::{self, GpuKernel, STATUS_BYTES, SortSpec, Tile};
use kiln_kernels::{KernelSpec, Size};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The targets that modules are written for.
pub const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// How a buffer's elements lie.
#[derive(Clone, Debug)]
pub enum Layout {
    /// By strides, in elements.
    Strides(Vec<i64>),
    /// A matrix `[k][n]` in panels `[n/nr][k/group][nr][group]`, zero-padded.
    Panels { nr: i64, group: i64 },
    /// Filters `[taps][depth][filters]` in panels of each group of channels, where `run`
    /// taps at a time are filled up to a multiple of `pad` products.
    Filters {
        groups: i64,
        nr: i64,
        pad: i64,
        run: i64,
    },
    /// Filters `[taps][1][channels]`, one a channel, by groups of `pad` taps of `run`.
    Depthwise { pad: i64, run: i64 },
}

/// A buffer of a launch.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// What it is for; the result is `out`.
    pub role: &'static str,
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub layout: Layout,
    /// Elements in memory.
    pub elements: i64,
}

impl Buffer {
    /// One whose elements lie in order.
    pub fn dense(role: &'static str, dtype: DType, shape: &[i64]) -> Buffer {
        Buffer::strided(role, dtype, shape, &dense_strides(shape))
    }

    /// One whose elements lie by strides.
    pub fn strided(role: &'static str, dtype: DType, shape: &[i64], strides: &[i64]) -> Buffer {
        let last: i64 = shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum();
        Buffer {
            role,
            dtype,
            shape: shape.to_vec(),
            layout: Layout::Strides(strides.to_vec()),
            elements: last + 1,
        }
    }

    fn describe(&self) -> Value {
        let layout = match &self.layout {
            Layout::Strides(s) => json!({"strides": s}),
            Layout::Panels { nr, group } => json!({"panels": {"nr": nr, "group": group}}),
            Layout::Filters {
                groups,
                nr,
                pad,
                run,
            } => json!({"filters": {"groups": groups, "nr": nr, "pad": pad, "run": run}}),
            Layout::Depthwise { pad, run } => json!({"depthwise": {"pad": pad, "run": run}}),
        };
        json!({
            "role": self.role, "dtype": self.dtype.name(), "shape": self.shape,
            "layout": layout, "elements": self.elements,
        })
    }
}

/// Strides of elements in order, the last axis first.
pub fn dense_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    strides
}

/// Sizes of a spec: constants, or launch parameters with their values.
#[derive(Default)]
pub struct Sizes {
    pub open: bool,
    pub params: Vec<i64>,
}

impl Sizes {
    /// A size, extent or stride.
    pub fn size(&mut self, value: i64) -> Size {
        if !self.open {
            return Size::Const(value);
        }
        let known = self.params.iter().position(|&p| p == value);
        let at = known.unwrap_or_else(|| {
            self.params.push(value);
            self.params.len() - 1
        });
        Size::Param(at as u16)
    }

    /// Strides: a one stays a constant, as kernels are chosen by it.
    pub fn strides(&mut self, values: &[i64]) -> Vec<Size> {
        let one = |s: &mut Sizes, v| if v == 1 { Size::ONE } else { s.size(v) };
        values.iter().map(|&v| one(self, v)).collect()
    }
}

/// What a kernel computes.
pub enum Problem {
    /// What CPUs have a kernel for as well.
    Kernel(Box<KernelSpec>),
    /// A selection, for which devices alone have one; nothing is predicted.
    Selection(SortSpec),
}

impl From<KernelSpec> for Problem {
    fn from(spec: KernelSpec) -> Problem {
        Problem::Kernel(Box::new(spec))
    }
}

impl From<SortSpec> for Problem {
    fn from(spec: SortSpec) -> Problem {
        Problem::Selection(spec)
    }
}

/// A kernel of the check.
pub struct Case {
    /// The entry's name.
    pub name: String,
    pub family: &'static str,
    /// `check`: compared with a reference; `speed`: timed as well.
    pub purpose: &'static str,
    /// What it computes.
    pub op: Value,
    pub buffers: Vec<Buffer>,
    pub params: Vec<i64>,
    pub problem: Problem,
    /// Arithmetic operations, and bytes that must move at least.
    pub work: (i64, i64),
    launches: BTreeMap<String, Value>,
}

impl Case {
    /// A kernel without its launches.
    pub fn new(
        (name, family): (String, &'static str),
        op: Value,
        problem: impl Into<Problem>,
        buffers: Vec<Buffer>,
        params: Vec<i64>,
    ) -> Case {
        let bytes = |b: &Buffer| b.elements * b.dtype.size().unwrap_or(1) as i64;
        let moved = buffers.iter().map(bytes).sum();
        Case {
            name,
            family,
            purpose: "check",
            op,
            buffers,
            params,
            problem: problem.into(),
            work: (0, moved),
            launches: BTreeMap::new(),
        }
    }

    /// The same to be timed; `flops` operations are its work.
    pub fn timed(self, flops: i64) -> Case {
        Case {
            purpose: "speed",
            work: (flops, self.work.1),
            ..self
        }
    }

    /// Emits it for a target and notes how it is launched there.
    pub fn emit(&mut self, target: &GpuTarget) -> Result<GpuKernel, String> {
        let wrong = |what: String| format!("{} for {}: {what}", self.name, target.name);
        let forms = match &self.problem {
            Problem::Kernel(spec) => cuda::emit(spec, &self.name, target),
            Problem::Selection(spec) => Ok(cuda::emit_sort(spec, &self.name, target)),
        };
        let forms = forms.map_err(|e| wrong(e.to_string()))?;
        let kernel = cuda::form(&forms, &self.params).ok_or(wrong("no form serves".into()))?;
        let names = (0..).map(|i| format!("p{i}").into());
        let binding: Binding = names.zip(self.params.iter().copied()).collect();
        let size = |d: &Dim| d.eval(&binding).map_err(|e| wrong(e.to_string()));
        let predicted = match &self.problem {
            Problem::Kernel(spec) => {
                let predicted = predict(spec, kernel, &self.params, target);
                json!(predicted.map_err(|e| wrong(e.to_string()))?)
            }
            Problem::Selection(_) => Value::Null,
        };
        let sizes = |dims: &[Dim]| dims.iter().map(size).collect::<Result<Vec<i64>, String>>();
        let tile = |t: &Tile| {
            Ok(json!({
                "buffer": t.arg, "dtype": t.dtype.to_string(), "sizes": sizes(&t.sizes)?,
                "strides": sizes(&t.strides)?, "tile": t.tile,
            }))
        };
        let tiles = (kernel.tiles.iter().map(tile)).collect::<Result<Vec<Value>, String>>()?;
        let pass = |k: &GpuKernel| {
            Ok(json!({
                "entry": k.entry, "grid": sizes(&k.grid)?, "block": k.block,
                "cluster": k.cluster, "shared": k.shared,
            }))
        };
        let passes = [kernel].into_iter().chain(&kernel.then).map(pass);
        let passes = passes.collect::<Result<Vec<Value>, String>>()?;
        let launch = json!({
            "passes": passes,
            "tiles": tiles,
            "scratch": size(&kernel.scratch)?,
            "predicted": predicted,
        });
        self.launches.insert(target.name.clone(), launch);
        Ok(kernel.clone())
    }

    /// What each target's chip is predicted to take.
    pub fn prediction(&self) -> Value {
        let of = |launch: &Value| launch["predicted"].clone();
        let all: BTreeMap<&String, Value> =
            (self.launches.iter()).map(|(t, l)| (t, of(l))).collect();
        json!({"name": self.name, "family": self.family, "op": self.op, "predicted": all})
    }

    fn describe(&self) -> Value {
        let buffers: Vec<Value> = self.buffers.iter().map(Buffer::describe).collect();
        json!({
            "name": self.name, "family": self.family, "purpose": self.purpose, "op": self.op,
            "buffers": buffers, "params": self.params, "launches": self.launches,
            "flops": self.work.0, "bytes": self.work.1,
        })
    }
}

/// All kernels as JSON.
pub fn description(cases: &[Case]) -> String {
    let kernels: Vec<Value> = cases.iter().map(Case::describe).collect();
    let whole = json!({
        "format": 1, "targets": TARGETS, "status_bytes": STATUS_BYTES, "kernels": kernels,
    });
    serde_json::to_string_pretty(&whole).unwrap_or_default()
}
