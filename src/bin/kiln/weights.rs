//! What a safetensors file holds.

use crate::model::Failure;
use crate::output::outln;
use kiln::import::safetensors::SafeTensors;
use std::path::Path;

/// Whether a file is one, by its name.
pub fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "safetensors")
}

/// Lists the tensors in the order of the file; nothing but the header is read.
pub fn inspect(path: &Path, json: bool) -> Result<u8, Failure> {
    let file = SafeTensors::open(path).map_err(|d| Failure::input(d.to_string()))?;
    let total: usize = file.entries().iter().map(|e| e.range.len()).sum();
    if json {
        let tensors: Vec<serde_json::Value> = file
            .entries()
            .iter()
            .map(|e| {
                serde_json::json!({
                    "name": e.name, "dtype": e.dtype.name(), "shape": e.shape, "bytes": e.range.len(),
                })
            })
            .collect();
        let doc = serde_json::json!({
            "tensors": tensors, "bytes": total, "metadata": file.metadata(),
        });
        outln!("{doc}");
        return Ok(0);
    }
    for e in file.entries() {
        outln!(
            "{} : {}{:?} {} bytes",
            e.name,
            e.dtype,
            e.shape,
            e.range.len()
        );
    }
    let count = file.entries().len();
    outln!("{count} tensors, {:.1} MB", total as f64 / 1e6);
    Ok(0)
}
