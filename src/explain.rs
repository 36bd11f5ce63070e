//! Why launches take the forms that they take: what the runtime's rule says of each form of
//! a kernel for given sizes, and what the cost model predicts of those that serve.

use kiln_codegen::GpuTarget;
use kiln_ir::{Binding, Dim};
use kiln_kernels::cuda::Unit;
use kiln_kernels::cuda::cost::{Factors, Load, Prediction, time};
use kiln_runtime::exec::schedule::{Scheduled, Sizes, schedule};
use kiln_runtime::plan::{self, Gpu, GpuKernel, Pass, Program};
use kiln_runtime::{Error, Result};
use serde::Serialize;

/// The launches of an entry on one target.
#[derive(Debug, Serialize)]
pub struct Schedule {
    /// The entry.
    pub entry: String,
    /// The target.
    pub target: String,
    /// The chip that predictions are for.
    pub chip: String,
    /// Its launches in the order of the steps.
    pub launches: Vec<Launch>,
}

/// A launch, and every form of its kernel.
#[derive(Debug, Serialize)]
pub struct Launch {
    /// What it stems from.
    pub label: String,
    /// Why nothing is known of it, where that is so: sizes that data decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// The kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its integer parameters.
    pub params: Vec<i64>,
    /// Its forms in the plan's order.
    pub forms: Vec<Form>,
}

/// A form of a kernel, for one launch.
#[derive(Debug, Serialize)]
pub struct Form {
    /// Its first entry's name.
    pub entry: String,
    /// Launches, one after the other.
    pub passes: usize,
    /// Whether it is the one that launches take where nothing was measured.
    pub taken: bool,
    /// The devices on which it was measured to be the best, and is taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measured_best_on: Vec<String>,
    /// Why it does not serve this launch; none: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// What the cost model says of it, where it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
}

/// What the cost model says of a form.
#[derive(Debug, Serialize)]
pub struct Predicted {
    /// Time, rounds of blocks and the like.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// `arithmetic` or `memory`: what takes longer.
    pub bound_by: &'static str,
    /// Its time over that of the form that is taken.
    pub over_taken: f64,
}

/// Explains every launch of an entry for a target's code. K0732 where a size is missing,
/// K0804 for a target whose chip is not known here.
pub fn explain(program: &Program, entry: usize, binding: &Binding, gpu: &Gpu) -> Result<Schedule> {
    let target = GpuTarget::named(&gpu.target).ok_or_else(|| {
        let message = format!("nothing is known of the chips of {}", gpu.target);
        Error::run("K0804", message).help("use the kiln that compiled the artifact")
    })?;
    let all = schedule(program, entry, binding, gpu)?;
    Ok(Schedule {
        entry: program.entries[entry].name.clone(),
        launches: all
            .iter()
            .map(|s| launch(program, gpu, &target, s))
            .collect(),
        target: target.name,
        chip: target.chip,
    })
}

fn launch(program: &Program, gpu: &Gpu, target: &GpuTarget, s: &Scheduled) -> Launch {
    let label = s.launch.label.clone();
    // The numbers of kernels that devices alone have go on behind the others'.
    let name = |k: u32| {
        let mut all = program.kernels.iter().chain(&program.device_kernels);
        all.nth(k as usize).cloned()
    };
    match &s.sizes {
        Err(why) => Launch {
            label,
            unknown: Some(why.clone()),
            kernel: None,
            params: vec![],
            forms: vec![],
        },
        Ok(sizes) => Launch {
            label,
            unknown: None,
            kernel: name(sizes.kernel),
            params: sizes.params.clone(),
            forms: forms(&gpu.kernels[sizes.kernel as usize], sizes, target),
        },
    }
}

fn forms(all: &[GpuKernel], sizes: &Sizes, target: &GpuTarget) -> Vec<Form> {
    let predicted: Vec<Option<Prediction>> = (all.iter().zip(&sizes.forms))
        .map(|(form, fit)| fit.as_ref().ok().and(predict(form, sizes, target)))
        .collect();
    let taken = sizes.first.and_then(|f| predicted[f]);
    let row = |(i, (form, fit)): (usize, (&GpuKernel, &std::result::Result<_, String>))| Form {
        entry: form.passes[0].entry.clone(),
        passes: form.passes.len(),
        taken: sizes.first == Some(i),
        measured_best_on: (sizes.tuned.iter())
            .filter(|t| t.1 == i)
            .map(|t| t.0.clone())
            .collect(),
        rejected: fit.as_ref().err().cloned(),
        predicted: predicted[i].map(|p| Predicted {
            prediction: p,
            bound_by: match p.by_arithmetic {
                true => "arithmetic",
                false => "memory",
            },
            over_taken: taken.map_or(1.0, |t| p.seconds / t.seconds),
        }),
    };
    all.iter().zip(&sizes.forms).enumerate().map(row).collect()
}

/// What the cost model says of a form; none where a size of it has no value.
fn predict(form: &GpuKernel, sizes: &Sizes, target: &GpuTarget) -> Option<Prediction> {
    let names = (0..).map(|i| format!("p{i}").into());
    let binding: Binding = names.zip(sizes.params.iter().copied()).collect();
    let value = |d: &Dim| d.eval(&binding).ok().map(|n| n as f64);
    let rows = match &form.work.rows {
        Some((rows, height)) => Some(value(rows)? / f64::from((*height).max(1))),
        None => None,
    };
    let load = |(i, pass): (usize, &Pass)| {
        let blocks = match &form.work.parts {
            Some(parts) if i == 0 => {
                value(parts)? * f64::from(pass.cluster.iter().product::<u32>())
            }
            _ => (pass.grid.iter().map(value)).try_fold(1.0, |all, n| Some(all * n?))?,
        };
        let (flops, bytes) = match &pass.work {
            Some((flops, bytes)) => (value(flops)?, value(bytes)?),
            None if i == 0 => (sizes.flops as f64, sizes.bytes as f64),
            None => (0.0, 0.0),
        };
        Some(Load {
            flops,
            bytes,
            blocks,
            threads: pass.block.iter().product(),
            shared: pass.shared,
            unit: match form.work.unit {
                plan::Unit::Lanes => Unit::Lanes,
                plan::Unit::Mma => Unit::Mma,
                plan::Unit::Wgmma => Unit::Wgmma,
            },
            factors: match form.work.factors {
                plan::Factors::Halves => Factors::Halves,
                plan::Factors::Tf32 => Factors::Tf32,
                plan::Factors::Eights => Factors::Eights,
                plan::Factors::Bytes => Factors::Bytes,
            },
            // Later passes join rows that exist.
            rows: rows.filter(|_| i == 0),
        })
    };
    let passes = form.passes.iter().enumerate().map(load);
    let loads = passes.collect::<Option<Vec<Load>>>()?;
    Some(time(&loads, target))
}

impl Schedule {
    /// Lines for people.
    pub fn text(&self) -> String {
        let chip = format!("{} (predicted for an {})", self.target, self.chip);
        let mut text = format!("forms of @{} on {chip}\n", self.entry);
        for (i, l) in self.launches.iter().enumerate() {
            text += &match (&l.unknown, &l.kernel) {
                (Some(why), _) => format!("  {i:4} {}: {why}\n", l.label),
                (None, kernel) => {
                    let kernel = kernel.as_deref().unwrap_or("");
                    format!("  {i:4} {}: {kernel} {:?}\n", l.label, l.params)
                }
            };
            l.forms.iter().for_each(|f| text += &f.text());
        }
        text.trim_end().to_string()
    }
}

impl Form {
    fn text(&self) -> String {
        let passes = match self.passes {
            1 => String::new(),
            n => format!(" ({n} launches)"),
        };
        let what = match (&self.rejected, self.taken, &self.predicted) {
            (Some(why), ..) => format!("rejected: {why}"),
            (None, true, _) => "taken, the first that serves".to_string(),
            (None, false, Some(p)) if p.over_taken > 1.0 => {
                format!("serves too, predicted {:.2} times slower", p.over_taken)
            }
            (None, false, Some(p)) if p.over_taken == 1.0 => {
                "serves too, predicted to be as fast".to_string()
            }
            (None, false, Some(p)) => format!(
                "serves too, predicted {:.2} times as fast: `tune` measures which is",
                1.0 / p.over_taken
            ),
            (None, false, None) => "serves too".to_string(),
        };
        let measured = match &self.measured_best_on[..] {
            [] => String::new(),
            devices => format!(
                "; measured to be the best, and taken, on {}",
                devices.join(", ")
            ),
        };
        let predicted = self.predicted.as_ref().map_or(String::new(), |p| {
            let x = &p.prediction;
            format!(
                "\n            {:.2} µs by {}: {:.3} MFLOP at {:.1} TFLOP/s, {:.1} kB, {} blocks in {} waves",
                x.seconds * 1e6,
                p.bound_by,
                x.flops / 1e6,
                x.rate / 1e12,
                x.bytes / 1e3,
                x.blocks,
                x.waves
            )
        });
        format!(
            "       {}{passes}: {what}{measured}{predicted}\n",
            self.entry
        )
    }
}
