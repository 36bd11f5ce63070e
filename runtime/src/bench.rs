//! `bench`: times an entry, then profiles it against what the machine can do.

use crate::cli::{Request, gather, peak_bytes, refs};
use crate::device::Name;
use crate::error::{Error, Result};
use crate::npy::{self, Array};
use crate::profile::{Lane, Profile};
use crate::roofline::{FmaLoop, Roofline};
use crate::scaling;
use crate::trace::trace;
use crate::{Model, Session};
use kiln_ir::{Binding, DType};
use std::sync::Arc;
use std::time::Instant;

/// What happened before: when the artifact was loaded.
pub(crate) struct Loaded {
    /// Milliseconds that loading took.
    pub ms: f64,
    /// Resident memory before it, in bytes.
    pub before: u64,
}

/// What was measured.
struct Measured {
    /// Milliseconds of each run, sorted.
    times: Vec<f64>,
    peak: u64,
    /// What the CPU can do; none where kernels run elsewhere.
    roofline: Option<Roofline>,
    profile: Profile,
}

/// Measures; the text for stdout.
pub(crate) fn bench(
    r: &Request,
    model: Arc<Model>,
    entry: usize,
    loaded: &Loaded,
) -> Result<String> {
    let mut given = Given::of(r, &model, entry)?;
    let inputs = refs(&given.arrays);
    if r.sessions > 0 {
        return scaling::sessions(r, model, entry, &inputs);
    }
    let own;
    let fma = match (&r.fma, r.device) {
        (_, Name::Cuda(_) | Name::Sim) if !r.scaling => None,
        (Some(f), _) => Some(f),
        (None, _) => {
            own = FmaLoop::of_runtime().ok_or_else(|| {
                let message = "this machine has no fused multiply-add to measure against";
                Error::run("K0704", message)
            })?;
            Some(&own)
        }
    };
    if let (true, Some(fma)) = (r.scaling, fma) {
        return scaling::scaling(r, model, entry, fma, &inputs);
    }
    let mut session = r.session(model.clone())?;
    let threads = session.threads();
    let m = measure(r, &mut session, fma, &mut given)?;
    if let Some(path) = &r.profile {
        let name = &model.program().entries[entry].name;
        let title = format!("{} @{name}", r.artifact.display());
        let text = trace(&m.profile, m.roofline.as_ref(), threads, &title).to_string();
        npy::write_whole(path, &[text.as_bytes()])?;
    }
    Ok(match r.json {
        true => document(r, &m, &session, loaded),
        false => text(&m, &session, loaded),
    })
}

/// What runs are given: the same each time, or with a size that grows.
struct Given<'a> {
    r: &'a Request,
    model: &'a Model,
    entry: usize,
    dims: Vec<(String, i64)>,
    arrays: Vec<(String, Array)>,
}

impl<'a> Given<'a> {
    fn of(r: &'a Request, model: &'a Model, entry: usize) -> Result<Given<'a>> {
        Ok(Given {
            r,
            model,
            entry,
            dims: r.dims.clone(),
            arrays: synthetic(r, &r.dims, model, entry)?,
        })
    }

    /// Runs once; the seconds that it took.
    fn run(&mut self, session: &mut Session) -> Result<f64> {
        let inputs = refs(&self.arrays);
        let start = Instant::now();
        session.run_with(self.entry, &inputs)?;
        let took = start.elapsed().as_secs_f64();
        if let Some(name) = &self.r.grow {
            let size = self.dims.iter_mut().find(|(n, _)| n == name);
            let size = size.ok_or_else(|| {
                let message = format!("the size `{name}` is to grow from nothing");
                Error::input("K0732", message).help(format!("give it with --dim {name}=N"))
            })?;
            size.1 += 1;
            self.arrays = synthetic(self.r, &self.dims, self.model, self.entry)?;
        }
        Ok(took)
    }
}

fn measure(
    r: &Request,
    session: &mut Session,
    fma: Option<&FmaLoop>,
    given: &mut Given,
) -> Result<Measured> {
    given.run(session)?;
    given.run(session)?;
    // Every buffer is there now; what the roofline reads is not the model's memory.
    let peak = peak_bytes();
    let roofline = fma.map(|fma| Roofline::measure(fma, session.threads()));
    // Not before: the threads that measure the roofline would be pinned as well.
    let _pinned = session.pin_caller()?;
    // Reading all that memory has emptied the caches.
    given.run(session)?;
    let once = given.run(session)?;
    // About two seconds, ten runs at least.
    let runs = match r.runs {
        0 => ((2.0 / once.max(1e-6)) as usize).clamp(10, 10_000),
        n => n,
    };
    let mut times: Vec<f64> = (0..runs)
        .map(|_| Ok(given.run(session)? * 1e3))
        .collect::<Result<_>>()?;
    times.sort_by(f64::total_cmp);
    // The fastest of a few: one run alone may have been interrupted.
    let mut profile: Option<Profile> = None;
    for _ in 0..runs.min(5) {
        session.set_profiling(true);
        given.run(session)?;
        let next = session.take_profile();
        profile = profile.into_iter().chain(next).min_by_key(|p| p.ns());
    }
    Ok(Measured {
        times,
        peak,
        roofline,
        profile: profile.unwrap_or_default(),
    })
}

impl Measured {
    fn median(&self) -> f64 {
        self.times[self.times.len() / 2]
    }

    fn flops(&self) -> i64 {
        let steps = self.profile.steps.iter();
        steps.fold(0, |n, s| n.saturating_add(s.flops))
    }

    fn bytes(&self) -> i64 {
        let steps = self.profile.steps.iter();
        steps.fold(0, |n, s| n.saturating_add(s.bytes))
    }
}

/// Copies between the host and the device in one run.
fn crossings(m: &Measured) -> [(usize, i64); 2] {
    [Lane::ToDevice, Lane::ToHost].map(|lane| m.profile.crossings(lane))
}

fn document(r: &Request, m: &Measured, session: &Session, loaded: &Loaded) -> String {
    let steps: Vec<serde_json::Value> = (m.profile.steps.iter())
        .map(|s| {
            let share = (m.roofline.as_ref()).map(|r| r.share(s.flops, s.bytes, s.ns));
            let mut doc = serde_json::json!({
                "label": s.label, "kernel": s.kernel, "ns": s.ns, "flops": s.flops,
                "bytes": s.bytes, "share": share.map(|s| s.0), "bound": share.map(|s| s.1),
            });
            if session.device_bytes().is_some() {
                doc["lane"] = serde_json::json!(s.lane);
                doc["counts"] = serde_json::json!(s.counts);
            }
            doc
        })
        .collect();
    let [up, down] = crossings(m);
    let device = session.device_bytes().map(|bytes| {
        serde_json::json!({
            "name": r.device.to_string(), "bytes": bytes,
            "copies_up": up.0, "bytes_up": up.1, "copies_down": down.0, "bytes_down": down.1,
            "graphs": session.graph_counts(),
        })
    });
    let mut doc = serde_json::json!({
        "median_ms": m.median(), "min_ms": m.times[0], "compile_ms": r.compile_ms,
        "load_ms": loaded.ms, "before_bytes": loaded.before, "peak_bytes": m.peak,
        "flops": m.flops(), "bytes": m.bytes(), "runs": m.times.len(), "threads": session.threads(),
        "level": session.runs(), "roofline": m.roofline, "per_step": steps,
    });
    if device.is_some() {
        doc["device"] = serde_json::json!(device);
    }
    doc.to_string()
}

fn text(m: &Measured, session: &Session, loaded: &Loaded) -> String {
    let (threads, level) = (session.threads(), session.runs());
    let steps = &m.profile.steps;
    let mut order: Vec<_> = steps.iter().collect();
    order.sort_by_key(|s| std::cmp::Reverse(s.ns));
    let total: u64 = steps.iter().map(|s| s.ns).sum();
    let median = m.median();
    let mut text = format!(
        "median {median:.3} ms, fastest {:.3} ms of {} runs ({threads} threads, {level})\nloaded in {:.1} ms, peak memory {:.1} MB, {:.2} GFLOP/s\n",
        m.times[0],
        m.times.len(),
        loaded.ms,
        m.peak as f64 / 1e6,
        m.flops() as f64 / median / 1e6
    );
    if let Some(roof) = &m.roofline {
        text += &format!(
            "roofline {:.1} GFLOP/s (f32, {}), {:.1} GB/s read\n",
            roof.fma_gflops, roof.fma_loop, roof.read_gb_s
        );
    }
    if let Some(bytes) = session.device_bytes() {
        let [up, down] = crossings(m);
        text += &format!(
            "{:.1} MB on the device; a profiled run copies {} times up, {:.3} MB, and {} times down, {:.3} MB\n",
            bytes as f64 / 1e6,
            up.0,
            up.1 as f64 / 1e6,
            down.0,
            down.1 as f64 / 1e6
        );
    }
    if let Some(g) = session.graph_counts().filter(|g| g.recorded > 0) {
        text += &format!(
            "{} graphs recorded and replayed {} times, {} of their nodes updated\n",
            g.recorded, g.replayed, g.updated
        );
    }
    for s in order.iter().take(12) {
        let share = m.roofline.as_ref().map_or(String::new(), |roof| {
            let (share, bound) = roof.share(s.flops, s.bytes, s.ns);
            format!("{:4.0} % of {bound:<10}  ", 100.0 * share)
        });
        text += &format!(
            "{:5.1} %  {:9.1} µs  {:7.1} GFLOP/s  {:6.1} GB/s  {share}{}\n",
            100.0 * s.ns as f64 / total.max(1) as f64,
            s.ns as f64 / 1e3,
            s.flops as f64 / s.ns as f64,
            s.bytes as f64 / s.ns as f64,
            s.label
        );
    }
    text.trim_end().to_string()
}

/// Inputs for a measurement: what was given, and for the rest seeded numbers of
/// the right shape (integers 1, and strings that are this number: masks, types and
/// small ids are all valid).
pub(crate) fn synthetic(
    r: &Request,
    dims: &[(String, i64)],
    model: &Model,
    entry: usize,
) -> Result<Vec<(String, Array)>> {
    let mut arrays = gather(r)?;
    let binding: Binding = dims.iter().map(|(n, v)| (n.as_str().into(), *v)).collect();
    for port in &model.program().entries[entry].inputs {
        if arrays.iter().any(|(n, _)| *n == port.name) {
            continue;
        }
        let shape: Vec<usize> = port
            .dims
            .iter()
            .map(|d| {
                let v = d.eval(&binding).map_err(|e| {
                    Error::input("K0732", format!("input `{}`: {e}", port.name))
                        .help(format!("give it with --dim {d}=N"))
                })?;
                usize::try_from(v).map_err(|_| Error::input("K0732", format!("`{d}` is negative")))
            })
            .collect::<Result<_>>()?;
        let n = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .filter(|&n| n < 1 << 36)
            .ok_or_else(|| {
                Error::input(
                    "K0714",
                    format!(
                        "input `{}` of shape {shape:?} is beyond what can be run",
                        port.name
                    ),
                )
            })?;
        if port.dtype == DType::Str {
            let array = Array {
                dtype: port.dtype,
                shape,
                bytes: vec![],
                strings: vec!["1".to_string(); n],
            };
            arrays.push((port.name.clone(), array));
            continue;
        }
        let mut seed = 0x9E37_79B9_7F4A_7C15u64;
        let mut out = kiln_ir::tensor::Encoder::new(port.dtype, n);
        for _ in 0..n {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            match port.dtype.is_float() {
                true => out.push_f64((seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5),
                false => out.push_i64(1),
            }
        }
        arrays.push((
            port.name.clone(),
            Array {
                dtype: port.dtype,
                shape,
                bytes: out.finish(),
                strings: vec![],
            },
        ));
    }
    Ok(arrays)
}
