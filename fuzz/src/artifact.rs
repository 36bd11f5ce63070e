//! The check of artifacts: any bytes load or say why not, with a code, and what
//! loads predicts its memory. Nothing that they hold is executed.

use kiln_ir::Binding;
use kiln_runtime::plan::{Entry, Program};
use kiln_runtime::{Artifact, Error, Model};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Sizes that every symbol is bound to, in turn: those that fit, and those that
/// overflow where they are multiplied.
const SIZES: [i64; 7] = [0, 1, 3, 1 << 20, 1 << 40, i64::MAX, -1];

/// Checks everything that must hold of a file: as it is, and with its hashes made
/// right, so that what lies behind them is reached.
pub fn check(file: &[u8]) {
    let loaded = load(file);
    let mut sealed = file.to_vec();
    if reseal(&mut sealed).is_none() || sealed == file {
        return;
    }
    // A hash that was wrong was seen.
    assert!(loaded.is_none(), "an artifact with wrong hashes loads");
    load(&sealed);
}

fn load(file: &[u8]) -> Option<Arc<Model>> {
    let loaded = Artifact::from_bytes("fuzzed.kiln", file).and_then(Model::from_artifact);
    let model = loaded.map_err(|e| is_whole(&e)).ok()?;
    for (i, entry) in model.program().entries.iter().enumerate() {
        for size in SIZES {
            let binding: Binding = symbols(entry).into_iter().map(|s| (s, size)).collect();
            let targets = 0..model.program().gpu.len();
            for gpu in std::iter::once(None).chain(targets.map(Some)) {
                match model.predict_memory(i, &binding, 2, gpu) {
                    Ok(m) => assert!(m.total >= m.file && m.total >= m.arena, "{m:?}"),
                    Err(e) => is_whole(&e),
                }
            }
        }
    }
    // What is written is read: the plan is the same after it.
    let text = serde_json::to_string(model.program()).expect("a plan is JSON");
    let again: Program = serde_json::from_str(&text).expect("a plan reads back");
    assert_eq!(serde_json::to_string(&again).ok(), Some(text));
    Some(model)
}

fn is_whole(e: &Error) {
    let digits = e.code.strip_prefix("K07").unwrap_or("");
    let coded = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
    assert!(coded && !e.message.is_empty(), "{e:?}");
}

fn symbols(entry: &Entry) -> BTreeSet<Arc<str>> {
    let mut out = BTreeSet::new();
    for d in entry.inputs.iter().flat_map(|p| &p.dims) {
        d.symbols(&mut out);
    }
    out
}

/// The sections of an artifact by its table, if that lies inside.
pub fn sections(file: &[u8]) -> Option<Vec<Range<usize>>> {
    let table = table(file)?;
    let rows = file[table].chunks_exact(ROW);
    rows.map(|row| {
        let start = usize::try_from(u64_at(row, 0)?).ok()?;
        let end = start.checked_add(usize::try_from(u64_at(row, 8)?).ok()?)?;
        file.get(start..end).map(|_| start..end)
    })
    .collect()
}

const ROW: usize = 24;

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn table(file: &[u8]) -> Option<Range<usize>> {
    let count = u32::from_le_bytes(file.get(12..16)?.try_into().ok()?) as usize;
    let start = usize::try_from(u64_at(file, 16)?).ok()?;
    let table = start..start.checked_add(count.checked_mul(ROW)?)?;
    file.get(table.clone()).map(|_| table)
}

/// Makes the length and the hashes of header, table and sections right; none
/// where they have no place.
pub fn reseal(file: &mut [u8]) -> Option<()> {
    let (table, sections) = (table(file)?, sections(file)?);
    if table.start < 64 || sections.iter().any(|s| s.start < 64) {
        return None;
    }
    for (row, section) in table.clone().step_by(ROW).zip(sections) {
        let hash = xxh3_64(&file[section]);
        file[row + 16..row + 24].copy_from_slice(&hash.to_le_bytes());
    }
    let length = file.len() as u64;
    let hash = xxh3_64(&file[table]);
    file[24..32].copy_from_slice(&hash.to_le_bytes());
    file[32..40].copy_from_slice(&length.to_le_bytes());
    let hash = xxh3_64(&file[..40]);
    file[40..48].copy_from_slice(&hash.to_le_bytes());
    Some(())
}
