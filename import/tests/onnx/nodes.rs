//! ONNX's own node tests, interpreted.

use crate::support::*;
use kiln_import::import_onnx;
use kiln_ir::{DType, Module};
use std::collections::BTreeMap;
use std::path::Path;

/// Cases that import and give another result, each with its reason.
const KNOWN: &[(&str, &str)] = &[
    (
        "test_attention_4d_causal_bf16_expanded",
        "one bf16 rounding more than the reference",
    ),
    (
        "test_bitshift_left_int32_negative_shift",
        "a negative shift has no defined result",
    ),
    (
        "test_cast_e8m0_FLOAT",
        "f8e8m0 rounds to nearest here, up in the default mode",
    ),
];

/// How many cases must pass; raise it when more do.
const AT_LEAST: usize = 1_205;

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
    let imported = import_onnx(&case.join("model.onnx"), &options())
        .map_err(|e| Miss::Gap(format!("{} {}", e[0].code, e[0].place.op)))?;
    round_trips(&imported.module).map_err(Miss::Wrong)?;
    for set in 0.. {
        let data = case.join(format!("test_data_set_{set}"));
        if !data.exists() {
            break;
        }
        data_passes(&imported.module, &data)
            .map_err(|what| Miss::Wrong(format!("set {set}: {what}")))?;
    }
    Ok(())
}

fn data_passes(module: &Module, data: &Path) -> Result<(), String> {
    let inputs = tensors(data, "input")?;
    let inputs: Vec<_> = inputs.into_iter().map(|(_, t)| t).collect();
    let got = run(module, &inputs)?;
    let want = tensors(data, "output")?;
    for (got, (name, want)) in got.iter().zip(&want) {
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
    let folder = scratch("cases");
    let script = root().join("import/tests/onnx/cases.py");
    if python(&script, &[folder.to_str().unwrap()]).is_none() {
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
    assert!(count >= 88, "{count} cases");
}
