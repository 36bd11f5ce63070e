//! What `kiln quantize` says: a table, or one JSON document.

use super::check::Output;
use crate::args::QuantizeArgs;
use crate::output::outln;
use kiln::quantize::{Applied, Plan};
use kiln::runtime::cli;
use std::time::Duration;

/// Rows of a table; of more, the worst are shown.
const MOST_ROWS: usize = 16;

pub struct Report<'a> {
    pub args: &'a QuantizeArgs,
    /// The opset that the model had.
    pub had: i64,
    /// Batches to calibrate on, and to check with.
    pub batches: (usize, usize),
    pub plan: &'a Plan,
    pub applied: &'a Applied,
    pub outputs: &'a [Output],
    /// The largest relative error of an output.
    pub largest: f64,
    /// Whether the model is written.
    pub written: bool,
    /// Bytes of the model before and after.
    pub bytes: (u64, u64),
    pub calibrated: Duration,
    pub total: Duration,
}

impl Report<'_> {
    pub fn print(&self) {
        match self.args.json {
            true => outln!("{}", self.json()),
            false => self.table(),
        }
    }

    fn json(&self) -> serde_json::Value {
        // JSON has no infinity.
        let number = |v: f64| v.is_finite().then_some(v);
        let activations: Vec<serde_json::Value> = (self.applied.activations.iter())
            .map(|a| {
                let (low, high) = a.grid.range();
                serde_json::json!({ "tensor": a.tensor, "scale": a.grid.scale, "zero_point": a.grid.zero,
                    "min": a.range.0, "max": a.range.1, "low": low, "high": high,
                    "clipped": a.clipped, "sqnr_db": a.sqnr_db, "smoothed": a.smoothed })
            })
            .collect();
        let weights: Vec<serde_json::Value> = (self.applied.weights.iter())
            .map(|w| {
                serde_json::json!({ "tensor": w.tensor, "node": w.node, "shape": w.shape, "scales": w.scales,
                    "scale_min": w.scale_range.0, "scale_max": w.scale_range.1, "zero_point": 0,
                    "sqnr_db": w.sqnr_db, "bias_i32": w.bias })
            })
            .collect();
        let outputs: Vec<serde_json::Value> = (self.outputs.iter())
            .map(|o| {
                serde_json::json!({ "name": o.name, "float": o.is_float(), "relative_error": number(o.relative()),
                    "cosine": o.cosine(), "largest_difference": o.largest, "mismatch": o.mismatch })
            })
            .collect();
        let left: Vec<serde_json::Value> = (self.plan.left.iter())
            .map(|l| serde_json::json!({ "node": l.node, "op": l.op, "why": l.why }))
            .collect();
        serde_json::json!({
            "model": self.args.model.display().to_string(),
            "output": self.args.output.display().to_string(), "written": self.written,
            "bytes_before": self.bytes.0, "bytes_after": self.bytes.1,
            "method": self.args.method, "opset_before": self.had,
            "calibration_batches": self.batches.0, "check_batches": self.batches.1,
            "quantized_nodes": self.plan.products.len(),
            "activations": activations, "weights": weights, "left": left, "outputs": outputs,
            "largest_error": number(self.largest), "max_error": self.args.max_error,
            "calibrate_ms": self.calibrated.as_secs_f64() * 1e3,
            "total_ms": self.total.as_secs_f64() * 1e3, "peak_bytes": cli::peak_bytes(),
        })
    }

    fn table(&self) {
        let mut activations: Vec<_> = self.applied.activations.iter().collect();
        let more = worst(&mut activations, |a| a.sqnr_db);
        outln!(
            "{:>10} {:>4} {:>21} {:>9} {:>7}  activations (u8)",
            "scale",
            "zero",
            "range",
            "clipped",
            "SQNR"
        );
        for a in activations {
            let (low, high) = a.range;
            outln!(
                "{:>10.3e} {:>4} {low:>10.3e} {high:>10.3e} {:>8.3}% {:>4.1} dB  {}{}",
                a.grid.scale,
                a.grid.zero,
                100.0 * a.clipped,
                a.sqnr_db,
                a.tensor,
                if a.smoothed { ", smoothed" } else { "" }
            );
        }
        say_more(more);
        let mut weights: Vec<_> = self.applied.weights.iter().collect();
        let more = worst(&mut weights, |w| w.sqnr_db);
        outln!(
            "{:>10} {:>10} {:>7} {:>7}  weights (i8)",
            "scales",
            "to",
            "number",
            "SQNR"
        );
        for w in weights {
            outln!(
                "{:>10.3e} {:>10.3e} {:>7} {:>4.1} dB  {} {:?}{}",
                w.scale_range.0,
                w.scale_range.1,
                w.scales,
                w.sqnr_db,
                w.node,
                w.shape,
                if w.bias { ", bias i32" } else { "" }
            );
        }
        say_more(more);
        for l in self.plan.left.iter().take(MOST_ROWS) {
            outln!("left: {} `{}`: {}", l.op, l.node, l.why);
        }
        say_more(self.plan.left.len().saturating_sub(MOST_ROWS));
        for o in self.outputs {
            let what = match (&o.mismatch, o.cosine()) {
                (Some(m), _) => m.clone(),
                (None, _) if !o.is_float() => {
                    format!("{:.3e} of the elements differ", o.relative())
                }
                (None, cosine) => format!(
                    "relative error {:.3e}, cosine {:.5}, largest difference {:.3e}",
                    o.relative(),
                    cosine.unwrap_or(1.0),
                    o.largest
                ),
            };
            outln!("output {}: {what}", o.name);
        }
        let (before, after) = self.bytes;
        outln!(
            "{}: {} nodes quantized, {} left; {:.1} MB, was {:.1} MB; {} batches, {:.1} s, {:.0} MB at most",
            self.args.output.display(),
            self.plan.products.len(),
            self.plan.left.len(),
            after as f64 / 1e6,
            before as f64 / 1e6,
            self.batches.0,
            self.total.as_secs_f64(),
            cli::peak_bytes() as f64 / 1e6
        );
    }
}

/// Keeps those of least value if there are many, in the order that they had; how many
/// more there are.
fn worst<T>(all: &mut Vec<&T>, value: impl Fn(&T) -> f64) -> usize {
    let more = all.len().saturating_sub(MOST_ROWS);
    if more > 0 {
        let mut values: Vec<f64> = all.iter().map(|v| value(v)).collect();
        values.sort_by(f64::total_cmp);
        let limit = values[MOST_ROWS - 1];
        all.retain(|v| value(v) <= limit);
        all.truncate(MOST_ROWS);
    }
    more
}

fn say_more(more: usize) {
    if more > 0 {
        outln!("and {more} more: --json lists them all");
    }
}
