//! The operators' cases, changed: whatever a model says, importing it gives a module
//! or coded errors.

use crate::support::*;
use kiln_import::import_onnx;
use onnx_protobuf::tensor_shape_proto::dimension::Value as Extent;
use onnx_protobuf::type_proto::Value as Type;
use onnx_protobuf::{Message, ModelProto, NodeProto, ValueInfoProto};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Numbers where an attribute's was.
const ODD: [i64; 6] = [0, 1, -1, 3, 1 << 40, i64::MAX];

/// Every change of one node: arguments left out, attributes dropped and given odd
/// numbers and lengths.
fn nodes(node: &NodeProto) -> Vec<NodeProto> {
    let mut out = vec![];
    let mut with = |change: &dyn Fn(&mut NodeProto)| {
        let mut n = node.clone();
        change(&mut n);
        out.push(n);
    };
    for i in 0..node.input.len() {
        with(&|n| n.input[i].clear());
        with(&|n| n.input.truncate(i));
        with(&|n| n.input[i] = n.input[0].clone());
    }
    for i in 0..node.attribute.len() {
        with(&|n| {
            n.attribute.remove(i);
        });
        for odd in ODD {
            with(&|n| n.attribute[i].i = odd);
            with(&|n| n.attribute[i].ints.iter_mut().for_each(|v| *v = odd));
            with(&|n| n.attribute[i].f = odd as f32);
        }
        with(&|n| {
            n.attribute[i].ints.pop();
            n.attribute[i].floats.pop();
            n.attribute[i].strings.pop();
        });
        with(&|n| n.attribute[i].s = b"NOTHING".to_vec());
        with(&|n| n.attribute[i].f = f32::NAN);
    }
    out
}

/// Every change of one input's type: axes dropped, added, and of odd extents.
fn types(info: &ValueInfoProto) -> Vec<ValueInfoProto> {
    let mut out = vec![];
    let mut with = |change: &dyn Fn(&mut onnx_protobuf::TensorShapeProto)| {
        let mut info = info.clone();
        if let Some(Type::TensorType(t)) = info.type_.mut_or_insert_default().value.as_mut() {
            change(t.shape.mut_or_insert_default());
            out.push(info);
        }
    };
    with(&|s| s.dim.clear());
    with(&|s| {
        s.dim.pop();
    });
    with(&|s| s.dim.extend(s.dim.first().cloned()));
    for extent in [0, 1, 3, 1 << 37] {
        with(&|s| {
            if let Some(d) = s.dim.last_mut() {
                d.value = Some(Extent::DimValue(extent));
            }
        });
    }
    out
}

fn changed(model: &ModelProto) -> Vec<ModelProto> {
    let graph = model.graph.as_ref().unwrap();
    let mut out = vec![];
    for (i, node) in graph.node.iter().enumerate() {
        for n in nodes(node) {
            let mut m = model.clone();
            m.graph.as_mut().unwrap().node[i] = n;
            out.push(m);
        }
    }
    for (i, info) in graph.input.iter().enumerate() {
        for t in types(info) {
            let mut m = model.clone();
            m.graph.as_mut().unwrap().input[i] = t;
            out.push(m);
        }
    }
    for (i, t) in graph.initializer.iter().enumerate() {
        let mut flat = model.clone();
        let own = &mut flat.graph.as_mut().unwrap().initializer[i];
        own.dims = vec![t.dims.iter().product()];
        out.push(flat);
        let mut deep = model.clone();
        deep.graph.as_mut().unwrap().initializer[i].dims.push(1);
        out.push(deep);
    }
    out
}

/// Imports every change; the first that panics is told.
fn survives(name: &str, path: &Path) -> Result<usize, String> {
    let bytes = std::fs::read(path).unwrap();
    let model = ModelProto::parse_from_bytes(&bytes).unwrap();
    let file = scratch("hostile").join(format!("{name}.onnx"));
    let all = changed(&model);
    for m in &all {
        std::fs::write(&file, m.write_to_bytes().unwrap()).unwrap();
        let tried = catch_unwind(AssertUnwindSafe(|| import_onnx(&file, &options())));
        match tried {
            Ok(Ok(_)) => {}
            Ok(Err(e)) if e.iter().all(|d| d.code.starts_with('K')) => {}
            Ok(Err(e)) => return Err(format!("{}: no code: {e:?}", file.display())),
            Err(_) => return Err(format!("{}: panics", file.display())),
        }
    }
    std::fs::remove_file(&file).unwrap();
    Ok(all.len())
}

#[test]
fn changed_models_are_errors_and_no_more() {
    let mut wrong = vec![];
    let mut count = 0;
    for (script, folder) in [
        ("scripts/microsoft_cases.py", "hostile-microsoft"),
        ("scripts/operator_cases.py", "hostile-operators"),
    ] {
        let folder = scratch(folder);
        if python(&root().join(script), &[folder.to_str().unwrap()]).is_none() {
            return;
        }
        let mut cases: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        cases.sort();
        // Neighbours in the order of names differ in little.
        for case in cases.iter().step_by(4) {
            let name = case.file_name().unwrap().to_string_lossy();
            match survives(&name, &case.join("model.onnx")) {
                Ok(n) => count += n,
                Err(what) => wrong.push(what),
            }
        }
    }
    println!("{count} changed models");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 4_000, "{count} changed models");
}
