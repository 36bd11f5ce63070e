//! `tune`: measures which form of its kernel each launch of a run takes best, and writes
//! the artifact anew with what was found.

use crate::bench;
use crate::cli::{Request, refs};
use crate::error::{Error, Result};
use crate::exec::schedule::input_sizes;
use crate::exec::tune::{FormFigures, Measured, Tuning, Unit};
use crate::tuned::merged;
use crate::{Artifact, Model};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds that measuring takes at most, if not given.
pub const SECONDS: f64 = 30.0;

/// A number of seconds; what is wrong with the text.
pub fn seconds(text: &str) -> std::result::Result<f64, String> {
    let n = text.parse().ok().filter(|n| (1e-3..=1e6).contains(n));
    n.ok_or_else(|| format!("`{text}` is no number of seconds, 0.001 to 1000000"))
}

/// What was measured and written.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The artifact that was written.
    pub artifact: String,
    /// The entry that ran.
    pub entry: String,
    /// What was measured.
    #[serde(flatten)]
    pub tuning: Tuning,
    /// Launches that take another form than the first one from now on.
    pub changed: usize,
    /// Rows of the target's table that was written, of all devices and sizes.
    pub rows: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Measures what a request asks for, and writes the artifact. K0801 to K0804 without the
/// device or code for it, K0732 without a size; nothing is written then.
pub fn tune(r: &Request, artifact: &Artifact, out: &Path) -> Result<Report> {
    let start = Instant::now();
    let model = Model::without_code(artifact.clone());
    let entry = model.entry(r.entry.as_deref())?;
    let e = &model.program().entries[entry];
    let names = input_sizes(e);
    if let Some((name, _)) = r.dims.iter().find(|(n, _)| !names.contains(&n[..])) {
        let have = names.iter().map(|n| &**n).collect::<Vec<_>>().join(", ");
        let message = format!("no input of @{} has the size `{name}`", e.name);
        return Err(Error::input("K0732", message).help(format!("its sizes are: {have}")));
    }
    let arrays = bench::synthetic(r, &r.dims, &model, entry)?;
    let mut session = r.session(Arc::clone(&model))?;
    let seconds = match r.seconds {
        0.0 => SECONDS,
        n => n,
    };
    let deadline = start + Duration::from_secs_f64(seconds);
    let tuning = session.tune(entry, &refs(&arrays), deadline)?;
    let newer = tuning.rows();
    let changed = newer.len();
    let keys = tuning.measured.iter().map(|m| (m.kernel, m.params.clone()));
    let keys: Vec<_> = keys.collect();
    let gpu = model.gpu_code(Some(&tuning.target))?;
    let table = &model.program().gpu[gpu].tuned;
    let rows = merged(table, &tuning.device, &keys, newer);
    artifact.retuned(gpu, &rows, out)?;
    Ok(Report {
        artifact: out.display().to_string(),
        entry: e.name.clone(),
        tuning,
        changed,
        rows: rows.len(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

impl Report {
    /// Lines for people.
    pub fn text(&self) -> String {
        let t = &self.tuning;
        let mut text = format!(
            "@{} on {} ({}): {} launches measured, {} like one before, {} of one form, {} left untimed\n",
            self.entry,
            t.device,
            t.target,
            t.measured.len(),
            t.alike,
            t.of_one_form,
            t.untimed.len()
        );
        if t.unit == Unit::WarpInstructions {
            text += "figures are instructions of warps that an interpreter counted, not seconds: they say nothing of a GPU's time\n";
        }
        for m in &t.measured {
            text += &format!("  {} {:?}\n", m.label, m.params);
            m.forms.iter().for_each(|f| text += &line(t.unit, m, f));
        }
        for u in &t.untimed {
            text += &format!("  untimed: {}: {}\n", u.label, u.why);
        }
        text + &format!(
            "{}: {} of these launches take another form than the first that serves; {} rows in all; {:.1} s",
            self.artifact, self.changed, self.rows, self.seconds
        )
    }
}

fn line(unit: Unit, m: &Measured, f: &FormFigures) -> String {
    let shown = match unit {
        Unit::Nanoseconds => {
            let us = |ns: u64| ns as f64 / 1e3;
            let (median, lower, upper) = (us(f.median), us(f.lower), us(f.upper));
            format!(
                "{median:9.2} µs ({lower:.2} to {upper:.2}, {} turns)",
                m.rounds
            )
        }
        Unit::WarpInstructions => format!("{:12} warp instructions", f.median),
    };
    let first = m.forms.first().is_some_and(|x| x.form == f.form);
    let note = match (first, f.form == m.best) {
        (true, true) => "  the first that serves, and stays",
        (true, false) => "  the first that serves",
        (false, true) => "  taken from now on",
        (false, false) => "",
    };
    format!("    {shown}  {}{note}\n", f.entry)
}
