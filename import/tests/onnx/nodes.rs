//! ONNX's own node tests, interpreted.

use crate::support::*;
use kiln_import::import_onnx;
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
    let data = case.join("test_data_set_0");
    let inputs = tensors(&data, "input").map_err(Miss::Wrong)?;
    let inputs: Vec<_> = inputs.into_iter().map(|(_, t)| t).collect();
    let got = run(&imported.module, &inputs).map_err(Miss::Wrong)?;
    let want = tensors(&data, "output").map_err(Miss::Wrong)?;
    for (got, (name, want)) in got.iter().zip(&want) {
        let tolerance = match got.dtype() {
            kiln_ir::DType::F16 => 2e-3,
            kiln_ir::DType::BF16 => 1e-2,
            _ => 1e-4,
        };
        if let Some(what) = difference(got, want, tolerance) {
            return Err(Miss::Wrong(format!("{name}: {what}")));
        }
    }
    Ok(())
}
