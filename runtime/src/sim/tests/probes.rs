//! Every form of an instruction against words that `scripts/ptx_probes.py` computed.

use crate::sim::{Launch, Memory, Module, launch};
use std::path::{Path, PathBuf};

/// A kernel with its inputs and what it must give, by lane.
struct Probe {
    name: String,
    ins: Vec<Vec<u32>>,
    outs: Vec<Vec<u32>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptx/probes")
}

fn rows(line: &str) -> Vec<Vec<u32>> {
    let word = |w: &str| u32::from_str_radix(w, 16).unwrap();
    line.split(';')
        .map(|row| row.split_whitespace().map(word).collect())
        .collect()
}

fn probes(text: &str) -> Vec<Probe> {
    let mut out: Vec<Probe> = vec![];
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("// ") else {
            continue;
        };
        match (rest.split_once(' '), out.last_mut()) {
            (Some(("probe", name)), _) => {
                let name = name.to_string();
                out.push(Probe {
                    name,
                    ins: vec![],
                    outs: vec![],
                });
            }
            (Some(("in:", words)), Some(probe)) => probe.ins = rows(words),
            (Some(("out:", words)), Some(probe)) => probe.outs = rows(words),
            _ => {}
        }
    }
    out
}

fn run(module: &Module, probe: &Probe) -> Result<(), String> {
    let kernel = module.kernel(&probe.name).ok_or("no such kernel")?;
    let mut memory = Memory::new();
    let lane = |rows: &[Vec<u32>], i: usize| rows[i % rows.len()].clone();
    // A warp, or the four of a group.
    let lanes = if probe.outs.len() > 32 { 128 } else { 32 };
    let input: Vec<u8> = (0..lanes)
        .flat_map(|i| lane(&probe.ins, i))
        .flat_map(u32::to_le_bytes)
        .collect();
    let expected: Vec<u32> = (0..lanes).flat_map(|i| lane(&probe.outs, i)).collect();
    let (from, to) = (memory.alloc(input.len()), memory.alloc(expected.len() * 4));
    memory.write(from, &input).unwrap();
    let params = [from.to_le_bytes(), to.to_le_bytes()].concat();
    let how = Launch {
        block: [lanes as u32, 1, 1],
        threads: 1,
        ..Launch::default()
    };
    launch(module, &mut memory, kernel, &how, &params).map_err(|fault| fault.to_string())?;
    let mut bytes = vec![0; expected.len() * 4];
    memory.read(to, &mut bytes).unwrap();
    let found: Vec<u32> = bytes
        .chunks(4)
        .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    let n = probe.outs[0].len();
    match (0..found.len()).find(|i| found[*i] != expected[*i]) {
        None => Ok(()),
        Some(i) => {
            let (lane, all) = (i / n, i / n * n..(i / n + 1) * n);
            let input = &probe.ins[lane % probe.ins.len()];
            Err(format!(
                "lane {lane}: {input:08x?} gives {:08x?}, not {:08x?}",
                &found[all.clone()],
                &expected[all]
            ))
        }
    }
}

#[test]
fn every_probe_gives_its_words() {
    let mut failed = vec![];
    let mut count = 0;
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let module = match Module::parse(&text) {
            Ok(module) => module,
            Err(error) => {
                failed.push(format!("{}: {error}", file.display()));
                continue;
            }
        };
        for probe in probes(&text) {
            count += 1;
            if let Err(what) = run(&module, &probe) {
                failed.push(format!("{}: {what}", probe.name));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {count} fail:\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert!(count > 600, "{count} probes");
}
