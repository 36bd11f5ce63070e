//! Imports and interprets ONNX's node cases: `suite DIR [MATCH] [-v]`.
#[path = "../tests/onnx/mini.rs"]
mod mini;
use kiln_import::*;
use std::collections::BTreeMap;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let verbose = args.iter().any(|a| a == "-v");
    let filter = args
        .get(2)
        .filter(|a| *a != "-v")
        .cloned()
        .unwrap_or_default();
    let mut dirs: Vec<_> = std::fs::read_dir(&args[1])
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    dirs.sort();
    let (mut pass, mut fail, mut gap) = (0, 0, 0);
    let mut gaps: BTreeMap<String, usize> = BTreeMap::new();
    for d in dirs {
        let name = d.file_name().unwrap().to_string_lossy().to_string();
        if !name.contains(&filter) {
            continue;
        }
        let r = std::panic::catch_unwind(|| case(&d));
        match r {
            Ok(Ok(())) => pass += 1,
            Ok(Err(e)) if e.starts_with("GAP") => {
                gap += 1;
                if verbose {
                    println!("{name}: {e}");
                }
                *gaps
                    .entry(e.lines().next().unwrap().to_string())
                    .or_default() += 1;
            }
            Ok(Err(e)) => {
                fail += 1;
                println!("FAIL {name}: {e}");
            }
            Err(_) => {
                fail += 1;
                println!("PANIC {name}");
            }
        }
    }
    let mut g: Vec<_> = gaps.into_iter().collect();
    g.sort_by_key(|x| std::cmp::Reverse(x.1));
    for (k, n) in g {
        println!("{n:5} {k}");
    }
    println!("{pass} passed, {fail} failed, {gap} gaps");
}

fn case(d: &std::path::Path) -> Result<(), String> {
    let m = import_onnx(&d.join("model.onnx"), &ImportOptions::default())
        .map_err(|e| format!("GAP {} {}: {}", e[0].code, e[0].place.op, e[0].message))?;
    let data = d.join("test_data_set_0");
    let mut inputs = vec![];
    while let Ok((_, t)) = read_tensor(&data.join(format!("input_{}.pb", inputs.len()))) {
        inputs.push(t);
    }
    let outs = mini::run(&m.module, &inputs).map_err(|e| e.to_string())?;
    for (k, o) in outs.iter().enumerate() {
        let (_, want) =
            read_tensor(&data.join(format!("output_{k}.pb"))).map_err(|e| e.to_string())?;
        if o.dtype() != want.dtype() || o.shape() != want.shape() {
            return Err(format!("output {k}: {o:?} is not {want:?}"));
        }
        if o.as_strings() != want.as_strings() {
            return Err("strings".into());
        }
        for i in 0..o.len().min(usize::MAX) {
            if o.dtype() == kiln_ir::DType::Str {
                break;
            }
            let (a, b) = (o.get_f64(i), want.get_f64(i));
            let tol = match o.dtype() {
                kiln_ir::DType::F16 => 2e-3,
                kiln_ir::DType::BF16 => 1e-2,
                _ => 1e-4,
            };
            let near = a == b
                || (a.is_nan() && b.is_nan())
                || (o.dtype().is_float() && (a - b).abs() <= 1e-6 + tol * b.abs());
            if !near {
                return Err(format!("output {k}[{i}]: {a} is not {b}; {o:?} {want:?}"));
            }
        }
    }
    Ok(())
}
