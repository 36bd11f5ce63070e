//! ONNX's own node tests, interpreted.

use crate::support::*;
use kiln_import::{DataSet, Diagnostic, Imported, Interface, import_onnx, read_data_set};
use kiln_ir::{DType, Module, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Cases that import and give another result, each with its reason.
const KNOWN: &[(&str, &str)] = &[
    (
        "test_averagepool_2d_ceil_last_window_starts_on_pad",
        "the expected numbers are rounded to four digits",
    ),
    (
        "test_attention_4d_causal_bf16_expanded",
        "one bf16 rounding more than the reference",
    ),
    ("test_bernoulli", "random numbers"),
    (
        "test_bitshift_left_int32_negative_shift",
        "a negative shift has no defined result",
    ),
    (
        "test_cast_e8m0_FLOAT",
        "f8e8m0 rounds to nearest here, up in the default mode",
    ),
    (
        "test_gridsample_bicubic",
        "the expected numbers are rounded to four digits",
    ),
    (
        "test_roialign_aligned",
        "the expected numbers are rounded to four digits",
    ),
    ("test_training_dropout", "random numbers"),
];

/// How many cases must pass; raise it when more do.
const AT_LEAST: usize = 1_815;

#[test]
fn node_tests_give_their_results() {
    let folder = scratch("node-cases");
    let script = root().join("scripts/onnx_node_cases.py");
    if python(&script, &[folder.to_str().unwrap()]).is_none() {
        return;
    }
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    cases.sort();
    let (mut passed, mut wrong) = (0, vec![]);
    let mut gaps: BTreeMap<String, usize> = BTreeMap::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().to_string();
        match case_passes(case) {
            Ok(()) => passed += 1,
            Err(Miss::Gap(op)) => *gaps.entry(op).or_default() += 1,
            Err(Miss::Wrong(_)) if KNOWN.iter().any(|k| name.starts_with(k.0)) => {}
            Err(Miss::Wrong(what)) => wrong.push(format!("{name}: {what}")),
        }
    }
    println!("{passed} of {} pass; not imported: {gaps:?}", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(passed >= AT_LEAST, "only {passed} cases pass");
}

enum Miss {
    /// A coded refusal.
    Gap(String),
    /// Another result.
    Wrong(String),
}

fn case_passes(case: &Path) -> Result<(), Miss> {
    let interface = Interface::of(&case.join("model.onnx"));
    for set in 0.. {
        let data = case.join(format!("test_data_set_{set}"));
        if !data.exists() {
            break;
        }
        let wrong = |what| Miss::Wrong(format!("set {set}: {what}"));
        let given = read_data_set(&data, &interface).map_err(|e| wrong(e.to_string()))?;
        let imported = imported(case, &given)
            .map_err(|e| Miss::Gap(format!("{} {}: {}", e[0].code, e[0].place.op, e[0].message)))?;
        round_trips(&imported.module).map_err(wrong)?;
        data_passes(&imported.module, &given).map_err(wrong)?;
    }
    Ok(())
}

/// Imports a case's model for its data; where the importer asks for what an input
/// holds (axes, paddings), inputs from the last on are frozen to it.
fn imported(case: &Path, data: &DataSet) -> Result<Imported, Vec<Diagnostic>> {
    let path = case.join("model.onnx");
    let mut result = import_onnx(&path, &data.options);
    let asks = |r: &Result<Imported, Vec<Diagnostic>>| match r {
        Ok(_) => false,
        Err(all) => all.iter().any(|d| d.code == "K0112"),
    };
    if !asks(&result) {
        return result;
    }
    let mut frozen = data.options.clone();
    let mut given = data.inputs.clone();
    // Integers before floats, which are structure only as scales.
    given.sort_by_key(|(_, t)| t.dtype().is_int());
    for (name, t) in given.into_iter().rev() {
        if asks(&result) && t.shape().len() <= 1 && t.len() <= 64 {
            frozen.frozen.insert(name, t);
            result = import_onnx(&path, &frozen);
        }
    }
    result
}

fn data_passes(module: &Module, data: &DataSet) -> Result<(), String> {
    let given = &data.inputs;
    let named = |name: &str| given.iter().find(|(n, _)| n == name);
    let params = forward(module).params.iter().enumerate();
    let inputs: Option<Vec<Tensor>> = params
        .map(|(i, p)| Some(named(&p.name).or(given.get(i))?.1.clone()))
        .collect();
    let inputs = inputs.ok_or("an input has no data")?;
    let got = run(module, &inputs)?;
    let want = &data.outputs;
    let ports = &forward(module).results;
    if got.len() != want.len() {
        return Err(format!("{} outputs, not {}", got.len(), want.len()));
    }
    for (i, (got, port)) in got.iter().zip(ports).enumerate() {
        let named = want.iter().find(|(n, _)| **n == *port.name);
        let (name, want) = named.unwrap_or(&want[i]);

        let tolerance = match got.dtype() {
            DType::F16 => 2e-3,
            DType::BF16 => 1e-2,
            _ => 1e-4,
        };
        if let Some(what) = difference(got, want, tolerance) {
            return Err(format!("{name}: {what}"));
        }
    }
    Ok(())
}

/// Older opsets, open and data-dependent sizes, control flow, functions and
/// operators of ONNX Runtime, against ONNX Runtime.
#[test]
fn models_with_open_sizes_equal_onnxruntime() {
    all_equal("import/tests/onnx/cases.py", "cases", 109);
}

/// The operators that ONNX Runtime's optimizer and quantizer emit.
#[test]
fn operators_of_microsoft_equal_onnxruntime() {
    all_equal("scripts/microsoft_cases.py", "microsoft-cases", 150);
}

/// The operators of ai.onnx.ml that are arithmetic on numbers, and others that the
/// node tests hardly cover.
#[test]
fn more_operators_equal_onnxruntime() {
    all_equal("scripts/operator_cases.py", "operator-cases", 136);
}

/// Every case that a script writes passes, and they are `at_least` so many.
fn all_equal(script: &str, folder: &str, at_least: usize) {
    // What another version wrote is not a case.
    let _ = std::fs::remove_dir_all(scratch(folder));
    let folder = scratch(folder);
    if python(&root().join(script), &[folder.to_str().unwrap()]).is_none() {
        return;
    }
    let (mut count, mut wrong) = (0, vec![]);
    for case in std::fs::read_dir(&folder).unwrap() {
        let case = case.unwrap();
        count += 1;
        match case_passes(&case.path()) {
            Ok(()) => {}
            Err(Miss::Gap(what) | Miss::Wrong(what)) => {
                wrong.push(format!("{:?}: {what}", case.file_name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= at_least, "{count} cases");
}
