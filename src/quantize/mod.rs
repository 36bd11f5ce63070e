//! Post-training quantization of ONNX models to 8 bits.
//!
//! ```text
//! x ─► QuantizeLinear u8 ─► DequantizeLinear ─┐
//!               w i8, a scale a channel ─► DequantizeLinear ─► MatMul · Gemm · Conv ─►
//!               b i32 ─► DequantizeLinear ────┘
//! ```
//!
//! A model is opened as a [`Draft`], brought to opset 13 ([`opset`]), and a [`Plan`] says
//! which products get integers. Their activations are observed while the model runs
//! ([`Observed`]); [`calibrate`] chooses each one's grid, [`weights`] rounds constants,
//! and [`apply`] writes the pairs of operators. By default only what products *read* is
//! quantized: a product's sums stay exact until its epilogue, and what reads them (norms,
//! residual sums) keeps its precision.

pub mod calibrate;
mod constants;
pub mod histogram;
pub mod opset;
mod plan;
mod rewrite;
pub mod smooth;
pub mod weights;

pub use calibrate::{Grid, Method};
pub use histogram::Histogram;
pub use plan::{Left, Plan, Product};
pub use rewrite::{ActivationReport, Applied, WeightReport, apply};

use crate::import::proto::{AttributeProto, NodeProto};
use crate::import::{Diagnostic, Draft, Place, Severity};
use crate::ir::Tensor;
use std::collections::BTreeMap;

/// Operators that can be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    MatMul,
    Gemm,
    Conv,
    /// Its table alone: memory is saved, nothing is computed in integers.
    Gather,
}

impl Kind {
    /// Those that are quantized unless others are named.
    pub const DEFAULT: [Kind; 3] = [Kind::MatMul, Kind::Gemm, Kind::Conv];

    /// The kind with this operator's name.
    pub fn by_name(name: &str) -> Option<Kind> {
        match name {
            "MatMul" => Some(Kind::MatMul),
            "Gemm" => Some(Kind::Gemm),
            "Conv" => Some(Kind::Conv),
            "Gather" => Some(Kind::Gather),
            _ => None,
        }
    }

    fn of(node: &NodeProto) -> Option<Kind> {
        let plain = matches!(&node.domain[..], "" | "ai.onnx");
        Kind::by_name(&node.op_type).filter(|_| plain)
    }
}

/// What is quantized, and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub method: Method,
    pub kinds: Vec<Kind>,
    /// Patterns of names (`*`, `?`) of nodes and outputs that stay as they are.
    pub exclude: Vec<String>,
    /// A scale for each output channel of a weight, not one in all.
    pub per_channel: bool,
    /// Weights in -63 … 63: for runtimes whose sums of two products saturate in 16 bits.
    pub reduce_range: bool,
    /// Products of two computed values too.
    pub all_products: bool,
    /// Grids for results of products too: what ONNX Runtime needs for QLinearConv.
    pub outputs: bool,
    /// How much of the spread between an activation's channels goes to the weights,
    /// in (0, 1).
    pub smooth: Option<f64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            method: Method::MinMax,
            kinds: Kind::DEFAULT.to_vec(),
            exclude: vec![],
            per_channel: true,
            reduce_range: false,
            all_products: false,
            outputs: false,
            smooth: None,
        }
    }
}

/// What activations were, and what smooths them.
#[derive(Default)]
pub struct Observed {
    /// By the names of values.
    pub histograms: BTreeMap<String, Histogram>,
    /// What the last axis of a value is multiplied by before it is quantized.
    pub factors: BTreeMap<String, Vec<f32>>,
}

impl Observed {
    /// Counts a value of a batch, multiplied by its factors if it has some.
    pub fn add(&mut self, name: &str, values: &[f32]) {
        let h = self.histograms.entry(name.to_string()).or_default();
        match self.factors.get(name) {
            Some(factors) => {
                let by = factors.iter().cycle();
                let smooth: Vec<f32> = values.iter().zip(by).map(|(v, f)| v * f).collect();
                h.add(&smooth);
            }
            None => h.add(values),
        }
    }

    /// Why values have no grid: these were never seen, or not as numbers.
    pub fn unusable(&self, names: &[String]) -> BTreeMap<String, String> {
        let why = |name: &String| match self.histograms.get(name) {
            None => Some("is no value of f32 that the model computes".to_string()),
            Some(h) if h.not_finite > 0 => Some(format!(
                "was NaN or infinite {} times on the calibration data",
                h.not_finite
            )),
            Some(h) if h.count == 0 => Some("was empty on all calibration data".to_string()),
            Some(_) => None,
        };
        let reasons = names.iter().filter_map(|n| Some((n.clone(), why(n)?)));
        reasons.collect()
    }
}

/// An error about the model as a whole, or about what was asked for.
fn problem(code: &'static str, message: String, help: String) -> Box<Diagnostic> {
    Box::new(Diagnostic {
        code,
        severity: Severity::Error,
        message,
        place: Place::default(),
        help,
    })
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

/// The numbers of an f32 tensor.
pub fn floats(t: &Tensor) -> Vec<f32> {
    let (whole, _) = t.bytes().as_chunks::<4>();
    whole.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Numbers the names that a rewriting makes, so that none is taken.
struct Names(std::collections::HashSet<String>);

impl Names {
    fn of(draft: &Draft) -> Names {
        fn collect(g: &crate::import::proto::GraphProto, into: &mut Names) {
            into.0.extend(g.initializer.iter().map(|t| t.name.clone()));
            into.0
                .extend(g.sparse_initializer.iter().map(|t| t.values.name.clone()));
            let ports = g.input.iter().chain(&g.output);
            into.0.extend(ports.map(|p| p.name.clone()));
            for n in &g.node {
                into.0.insert(n.name.clone());
                into.0.extend(n.output.iter().cloned());
                let inner = n
                    .attribute
                    .iter()
                    .flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs));
                inner.for_each(|g| collect(g, into));
            }
        }
        let mut names = Names(Default::default());
        collect(&draft.proto.graph, &mut names);
        names
    }

    /// This name, or the next like it that is free.
    fn fresh(&mut self, stem: String) -> String {
        let mut name = stem.clone();
        let mut k = 1;
        while !self.0.insert(name.clone()) {
            k += 1;
            name = format!("{stem}_{k}");
        }
        name
    }
}
