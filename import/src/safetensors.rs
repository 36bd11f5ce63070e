//! Safetensors files: named tensors in one file, each mapped where it lies.
//!
//! ```text
//! 0  header length n, u64     8  header: JSON, n bytes     8 + n  tensors, back to back
//! {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
//! ```
//!
//! Opening reads the header alone, and checks all of it: names are unique, tensors
//! cover the rest of the file without overlaps or gaps, and each has the bytes that
//! its shape asks for. Contents are read when they are used.

use crate::diagnostic::{Diagnostic, code};
use crate::mapped::Mapped;
use kiln_ir::tensor::element_count;
use kiln_ir::{Bytes, DType, Tensor};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::value::{Error as NameError, StrDeserializer};
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes of the header's length, which a file starts with.
const LENGTH: usize = 8;
/// Bytes of a header: the format's limit.
const MAX_HEADER: u64 = 100_000_000;
/// The header's entry that is no tensor.
const METADATA: &str = "__metadata__";

const DAMAGED: &str = "the file is cut short or damaged: fetch or save it again";

/// An open safetensors file.
pub struct SafeTensors {
    name: String,
    file: Arc<Mapped>,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// A tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Where its elements lie in the file, in bytes.
    pub range: Range<usize>,
}

impl SafeTensors {
    /// Opens and maps a file. Errors: K0101 if it cannot be read, K0121 for a name
    /// that is given twice, K0150 to K0154 for what is no sound safetensors file.
    pub fn open(path: &Path) -> Result<SafeTensors, Box<Diagnostic>> {
        let name = path.display().to_string();
        let mapped = Mapped::open(path).map_err(|e| {
            let d = Diagnostic::error(code::READ, format!("the file cannot be read: {e}"));
            d.help("check the path and its permissions").at(&name, "")
        })?;
        SafeTensors::new(&name, mapped)
    }

    /// The same over bytes in memory; `name` stands for the file in errors.
    pub fn from_bytes(name: &str, bytes: impl Into<Bytes>) -> Result<SafeTensors, Box<Diagnostic>> {
        SafeTensors::new(name, Mapped::Memory(bytes.into()))
    }

    fn new(name: &str, mapped: Mapped) -> Result<SafeTensors, Box<Diagnostic>> {
        let bytes = mapped.slice();
        let (header, start) = header(bytes).map_err(|d| Box::new(d.at(name, "")))?;
        let entries = entries(name, header.tensors, start, bytes.len())?;
        let names = entries.iter().enumerate();
        Ok(SafeTensors {
            name: name.to_string(),
            index: names.map(|(i, e)| (e.name.clone(), i)).collect(),
            file: Arc::new(mapped),
            entries,
            metadata: header.metadata,
        })
    }

    /// Every tensor, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.index.get(name).map(|&i| &self.entries[i])
    }

    /// What the file's author says of it (`format`, and what else there is).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor's contents, mapped from the file: nothing is read yet, but for
    /// bools, which are 0 or 1 in a [`Tensor`] whatever the file holds. The entry
    /// must be of this file, else the error is K0153.
    pub fn tensor(&self, entry: &Entry) -> Result<Tensor, Box<Diagnostic>> {
        let foreign = |what: String| {
            let d = Diagnostic::error(code::ST_LAYOUT, what);
            let d = d.help("ask for an entry of this file");
            Box::new(d.at(&self.name, &entry.name))
        };
        let bytes = self.file.bytes(entry.range.clone());
        let mut bytes = bytes.ok_or_else(|| foreign("the tensor lies outside the file".into()))?;
        if entry.dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
            let plain: Vec<u8> = bytes.iter().map(|&b| u8::from(b != 0)).collect();
            bytes = plain.into();
        }
        Tensor::new(entry.dtype, entry.shape.clone(), bytes).map_err(|e| foreign(e.to_string()))
    }
}

/// The header as it stands in the file.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Info)>,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    /// Keeps repeated names, which a map would drop in silence.
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        d.deserialize_map(Entries)
    }
}

/// The header, and where the tensors start.
fn header(bytes: &[u8]) -> Result<(Header, usize), Box<Diagnostic>> {
    let malformed = |what: String| Box::new(Diagnostic::error(code::ST_HEADER, what).help(DAMAGED));
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        let what = format!("{} bytes are no safetensors file", bytes.len());
        return Err(malformed(what));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let what = format!("the header is {length} bytes long, {MAX_HEADER} are the limit");
        let d = Diagnostic::error(code::ST_LIMIT, what)
            .help("this is no safetensors file, or a damaged one: fetch or save it again");
        return Err(Box::new(d));
    }
    // Within the limit it fits a usize.
    let text = rest.get(..length as usize).ok_or_else(|| {
        let left = rest.len();
        malformed(format!(
            "the header is {length} bytes long, {left} are left"
        ))
    })?;
    let header = serde_json::from_slice(text)
        .map_err(|e| malformed(format!("the header is malformed: {e}")))?;
    Ok((header, LENGTH + text.len()))
}

/// The tensors in the order of the file, which starts with them at byte `start` and
/// has `len` bytes.
fn entries(
    file: &str,
    mut tensors: Vec<(String, Info)>,
    start: usize,
    len: usize,
) -> Result<Vec<Entry>, Box<Diagnostic>> {
    tensors.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    let mut names = std::collections::HashSet::new();
    let (mut out, mut at) = (Vec::with_capacity(tensors.len()), 0);
    for (name, info) in &tensors {
        let fail = |d: Diagnostic| Box::new(d.at(file, name));
        if !names.insert(name.as_str()) {
            let d = Diagnostic::error(code::DUPLICATE, "two tensors have this name");
            return Err(fail(d.help("name each tensor once when saving the file")));
        }
        let dtype = dtype(&info.dtype).map_err(|d| fail(*d))?;
        let (from, to) = info.data_offsets;
        if from != at || to < from || to > len - start {
            return Err(fail(misplaced(info, at, len - start)));
        }
        if bytes(&info.shape, dtype) != Some(to - from) {
            return Err(fail(ill_sized(info, dtype)));
        }
        at = to;
        out.push(Entry {
            name: name.clone(),
            dtype,
            shape: info.shape.clone(),
            range: start + from..start + to,
        });
    }
    if at != len - start {
        let what = format!("the last {} bytes belong to no tensor", len - start - at);
        let d = Diagnostic::error(code::ST_LAYOUT, what);
        return Err(Box::new(d.help(DAMAGED).at(file, "")));
    }
    Ok(out)
}

fn misplaced(info: &Info, at: usize, len: usize) -> Diagnostic {
    let (from, to) = info.data_offsets;
    let what = if to < from {
        format!("the tensor ends at {to}, before its start at {from}")
    } else if to > len {
        format!("the tensor lies at {from}..{to}, and the file holds {len} bytes of tensors")
    } else if from < at {
        format!("the tensor starts at {from}, within the one that ends at {at}")
    } else {
        format!("the tensor starts at {from}, and the one before it ends at {at}")
    };
    Diagnostic::error(code::ST_LAYOUT, what).help(DAMAGED)
}

fn ill_sized(info: &Info, dtype: DType) -> Diagnostic {
    let (from, to) = info.data_offsets;
    let (shape, have) = (&info.shape, to - from);
    let what = match bytes(shape, dtype) {
        Some(want) => format!("{dtype}{shape:?} takes {want} bytes, and {have} are there"),
        None => format!("{dtype}{shape:?} takes no whole number of bytes that can be addressed"),
    };
    Diagnostic::error(code::ST_SIZE, what).help(DAMAGED)
}

/// Bytes of a tensor; none if they are too many, or no whole number.
fn bytes(shape: &[usize], dtype: DType) -> Option<usize> {
    let bits = element_count(shape)?.checked_mul(dtype.bits())?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// Kiln's element type for the one of this name.
fn dtype(name: &str) -> Result<DType, Box<Diagnostic>> {
    let refused = |what: String| {
        let d = Diagnostic::error(code::ST_DTYPE, what);
        Box::new(d.help("convert the tensor to one of F32, F16, BF16 and save the file again"))
    };
    let shown: String = name.chars().take(40).collect();
    let known = Dtype::deserialize(StrDeserializer::<NameError>::new(name));
    match known.map_err(|_| refused(format!("`{shown}` is no element type of safetensors")))? {
        Dtype::BOOL => Ok(DType::Bool),
        Dtype::F4 => Ok(DType::F4E2M1),
        Dtype::U8 => Ok(DType::U8),
        Dtype::I8 => Ok(DType::I8),
        Dtype::F8_E5M2 => Ok(DType::F8E5M2),
        Dtype::F8_E4M3 => Ok(DType::F8E4M3FN),
        Dtype::F8_E8M0 => Ok(DType::F8E8M0),
        Dtype::F8_E4M3FNUZ => Ok(DType::F8E4M3FNUZ),
        Dtype::F8_E5M2FNUZ => Ok(DType::F8E5M2FNUZ),
        Dtype::I16 => Ok(DType::I16),
        Dtype::U16 => Ok(DType::U16),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        Dtype::I32 => Ok(DType::I32),
        Dtype::U32 => Ok(DType::U32),
        Dtype::F32 => Ok(DType::F32),
        Dtype::C64 => Ok(DType::C64),
        Dtype::F64 => Ok(DType::F64),
        Dtype::I64 => Ok(DType::I64),
        Dtype::U64 => Ok(DType::U64),
        // Six-bit floats, and what later versions of the format add.
        _ => Err(refused(format!(
            "the element type {shown} is not supported yet"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), data].concat()
    }

    /// The code and the tensor that an error names.
    fn error(bytes: Vec<u8>) -> (&'static str, String) {
        let e = SafeTensors::from_bytes("w.safetensors", bytes).err();
        let e = e.expect("it is no sound file");
        assert!(e.place.file == "w.safetensors" && !e.help.is_empty(), "{e}");
        (e.code, e.place.node.clone())
    }

    fn one(dtype: &str, shape: &str, offsets: &str, data: usize) -> Vec<u8> {
        let header =
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        file(&header, &vec![0; data])
    }

    #[test]
    fn what_the_format_s_own_writer_makes_is_read() {
        let floats: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let views = [
            (
                "b",
                TensorView::new(Dtype::BOOL, vec![3], &[0, 1, 7]).unwrap(),
            ),
            (
                "f",
                TensorView::new(Dtype::F32, vec![1, 2], &floats).unwrap(),
            ),
            (
                "nothing",
                TensorView::new(Dtype::BF16, vec![0, 5], &[]).unwrap(),
            ),
            (
                "s",
                TensorView::new(Dtype::F8_E4M3, vec![], &[0x38]).unwrap(),
            ),
        ];
        let meta = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
        let bytes = serialize(views, Some(meta)).unwrap();
        let path = std::env::temp_dir().join(format!("kiln-{}.safetensors", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        let mapped = SafeTensors::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        for t in [mapped, SafeTensors::from_bytes("w", bytes).unwrap()] {
            assert_eq!((t.entries().len(), &*t.metadata()["format"]), (4, "pt"));
            let tensor = |name: &str| t.tensor(t.get(name).unwrap()).unwrap();
            assert_eq!(tensor("f").to_f32(), [1.5, -2.0]);
            assert_eq!(tensor("f").shape(), [1, 2]);
            assert_eq!(tensor("b").bytes(), [0, 1, 1]);
            assert_eq!(tensor("nothing").shape(), [0, 5]);
            assert_eq!(
                (tensor("s").dtype(), tensor("s").to_f64()),
                (DType::F8E4M3FN, vec![1.0])
            );
            assert!(t.get("absent").is_none());
        }
    }

    #[test]
    fn every_fault_has_its_code_and_names_the_tensor() {
        assert_eq!(error(vec![1, 2, 3]).0, "K0150");
        assert_eq!(error(file("{]", &[])).0, "K0150");
        assert_eq!(
            error(file(
                r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#,
                &[]
            ))
            .0,
            "K0150"
        );
        let cut = one("F32", "[2]", "[0,8]", 8)[..30].to_vec();
        assert_eq!(error(cut).0, "K0150");
        assert_eq!(
            error([&u64::MAX.to_le_bytes()[..], &[0; 64]].concat()).0,
            "K0151"
        );
        assert_eq!(error((MAX_HEADER + 1).to_le_bytes().to_vec()).0, "K0151");
        assert_eq!(error(MAX_HEADER.to_le_bytes().to_vec()).0, "K0150");
        let w = |bytes| {
            let (code, node) = error(bytes);
            assert_eq!(node, "w");
            code
        };
        assert_eq!(w(one("F33", "[2]", "[0,8]", 8)), "K0152");
        assert_eq!(w(one("F6_E2M3", "[4]", "[0,3]", 3)), "K0152");
        // Cut short; a gap before it; the end before the start.
        assert_eq!(w(one("F32", "[2]", "[0,8]", 7)), "K0153");
        assert_eq!(w(one("F32", "[2]", "[4,12]", 12)), "K0153");
        assert_eq!(w(one("F32", "[2]", "[8,0]", 8)), "K0153");
        assert_eq!(w(one("F32", "[3]", "[0,8]", 8)), "K0154");
        assert_eq!(
            w(one("F32", "[4611686018427387904,4]", "[0,0]", 0)),
            "K0154"
        );
        assert_eq!(
            w(one(
                "F32",
                "[9223372036854775807,9223372036854775807]",
                "[0,0]",
                0
            )),
            "K0154"
        );
        assert_eq!(w(one("F4", "[3]", "[0,2]", 2)), "K0154");
        // Bytes that no tensor has are nobody's fault in particular.
        assert_eq!(
            error(one("F32", "[2]", "[0,8]", 9)),
            ("K0153", String::new())
        );
    }

    #[test]
    fn overlaps_and_repeated_names_are_seen() {
        let u8s = |name: &str, from: usize, to: usize| {
            let n = to - from;
            format!(r#""{name}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{from},{to}]}}"#)
        };
        let both = |a: String, b: String| error(file(&format!("{{{a},{b}}}"), &[0; 8]));
        assert_eq!(both(u8s("a", 0, 5), u8s("b", 4, 8)), ("K0153", "b".into()));
        assert_eq!(both(u8s("a", 0, 8), u8s("b", 0, 8)), ("K0153", "b".into()));
        assert_eq!(both(u8s("a", 0, 4), u8s("a", 4, 8)), ("K0121", "a".into()));
        assert_eq!(both(u8s("a", 0, 4), u8s("b", 5, 8)), ("K0153", "b".into()));
    }
}
