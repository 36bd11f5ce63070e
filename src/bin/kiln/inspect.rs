//! `kiln inspect` of artifacts.

use crate::model::Failure;
use crate::output::outln;
use kiln::explain::{Schedule, explain};
use kiln::ir::Binding;
use kiln::runtime::Artifact;
use kiln::runtime::exec::schedule::{input_sizes, known_sizes};
use kiln::runtime::plan::{Gpu, Program};
use std::collections::BTreeSet;
use std::path::Path;

/// Shows an artifact: its entries, its kernels, and which form each launch takes on a GPU at
/// sizes that are given or fixed.
pub fn artifact(path: &Path, dims: &[(String, i64)], json: bool) -> Result<u8, Failure> {
    let artifact = Artifact::open(path)?;
    let p = &*artifact.program;
    let schedules = schedules(p, dims)?;
    if json {
        let failed = |e: serde_json::Error| Failure::run(e.to_string());
        let mut doc = serde_json::to_value(p).map_err(failed)?;
        doc["schedules"] = serde_json::to_value(&schedules).map_err(failed)?;
        outln!("{doc}");
        return Ok(0);
    }
    entries(p);
    p.gpu.iter().for_each(|g| gpu(&artifact, g));
    schedules.iter().for_each(|s| outln!("{}", s.text()));
    if schedules.is_empty() && !p.gpu.is_empty() {
        outln!("--dim NAME=N for each size says which forms launches take");
    }
    let weights: u64 = p.globals.iter().filter(|g| !g.state).map(|g| g.bytes).sum();
    let cpu = p.objects.iter().map(|o| &o.level[..]);
    let targets: Vec<&str> = cpu.chain(p.gpu.iter().map(|g| &g.target[..])).collect();
    outln!(
        "{} kernels for {}, {} globals, {:.1} MB of weights",
        p.kernels.len(),
        targets.join(", "),
        p.globals.len(),
        weights as f64 / 1e6
    );
    Ok(0)
}

/// What is said of launches on each target: of the entries whose sizes are all given or
/// fixed. K0732 where sizes are given that are those of no entry, or not all of any.
fn schedules(p: &Program, dims: &[(String, i64)]) -> Result<Vec<Schedule>, Failure> {
    let names: Vec<_> = p.entries.iter().map(input_sizes).collect();
    let all = || names.iter().flatten().map(|n| &**n);
    if let Some((name, _)) = dims.iter().find(|(name, _)| all().all(|n| n != name)) {
        let have: BTreeSet<&str> = all().collect();
        let have = Vec::from_iter(have).join(", ");
        let message =
            format!("K0732: no input has the size `{name}`; those that there are: {have}");
        return Err(Failure::input(message));
    }
    let (mut out, mut refused) = (vec![], None);
    for ((i, e), names) in p.entries.iter().enumerate().zip(&names) {
        let given = dims.iter().map(|(n, v)| (n.as_str().into(), *v));
        let binding: Binding = given.filter(|(n, _)| names.contains(n)).collect();
        match known_sizes(e, &binding) {
            Ok(()) => {
                for g in &p.gpu {
                    out.push(explain(p, i, &binding, g)?);
                }
            }
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    match refused {
        Some(e) if !dims.is_empty() && out.is_empty() => Err(e.into()),
        _ => Ok(out),
    }
}

fn entries(p: &Program) {
    for e in &p.entries {
        outln!(
            "@{}: {} steps, {} buffers",
            e.name,
            e.steps.len(),
            e.buffers.len()
        );
        e.inputs
            .iter()
            .for_each(|i| outln!("  in  {} : {}{:?}", i.name, i.dtype, i.dims));
        e.outputs
            .iter()
            .for_each(|o| outln!("  out {} : {}{:?}", o.name, o.dtype, o.dims));
        for (i, step) in e.steps.iter().enumerate() {
            if let kiln::runtime::plan::Step::Launch(l) = step {
                outln!(
                    "  {i:4} {} -> {}",
                    l.label,
                    p.kernels[l.variants[0].kernel as usize]
                );
            }
        }
    }
}

fn gpu(artifact: &Artifact, g: &Gpu) {
    let bytes = artifact.section(g.section).len();
    outln!("{}: {bytes} bytes of PTX", g.target);
    for k in g.kernels.iter().flatten() {
        let mut asks: Vec<String> = (k.when.iter().map(|(a, b)| format!("{a} <= {b}"))).collect();
        asks.extend((k.tiles.iter()).map(|t| format!("tiles {:?} of {}", t.tile, t.arg)));
        let asks = match asks.is_empty() {
            true => String::new(),
            false => format!(", where {}", asks.join(", ")),
        };
        for pass in &k.passes {
            let cluster = match pass.cluster {
                [1, 1, 1] => String::new(),
                c => format!(", clusters of {c:?}"),
            };
            outln!(
                "  {}: grid {:?}, blocks of {:?}{cluster}, {} bytes of shared memory, {} of scratch{asks}",
                pass.entry,
                pass.grid,
                pass.block,
                pass.shared,
                k.scratch
            );
        }
    }
}
