//! NumPy's `.npy` (format 1.0 to 3.0) and `.npz` files.

use crate::error::{Error, Result};
use crate::{Input, StringsRef, TensorRef};
use kiln_ir::{DType, Tensor};
use std::io::{Read, Write};
use std::path::Path;

/// A tensor read from a file.
#[derive(Clone, Debug)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements, row-major, little-endian; empty for strings.
    pub bytes: Vec<u8>,
    /// Elements that are strings, row-major.
    pub strings: Vec<String>,
}

impl Array {
    /// The array as a session takes it.
    pub fn input(&self) -> Input<'_> {
        let shape = &self.shape;
        match self.dtype {
            DType::Str => Input::Strings(StringsRef {
                shape,
                strings: &self.strings,
            }),
            dtype => Input::Numbers(TensorRef {
                dtype,
                shape,
                bytes: &self.bytes,
            }),
        }
    }

    /// The array as a tensor; `name` stands for the file in errors.
    pub fn tensor(self, name: &str) -> Result<Tensor> {
        let made = match self.dtype {
            DType::Str => Tensor::strings(self.shape, self.strings),
            dtype => Tensor::new(dtype, self.shape, self.bytes),
        };
        made.map_err(|e| bad(name, e))
    }
}

const NAMES: &[(&str, DType)] = &[
    ("f8", DType::F64),
    ("f4", DType::F32),
    ("f2", DType::F16),
    ("i8", DType::I64),
    ("i4", DType::I32),
    ("i2", DType::I16),
    ("i1", DType::I8),
    ("u8", DType::U64),
    ("u4", DType::U32),
    ("u2", DType::U16),
    ("u1", DType::U8),
    ("b1", DType::Bool),
    // NumPy has no bfloat16: two opaque bytes.
    ("V2", DType::BF16),
];

fn bad(name: &str, what: impl std::fmt::Display) -> Error {
    Error::input("K0730", format!("{name}: {what}"))
}

/// Reads an array from the bytes of an `.npy` file called `name`.
pub fn parse(name: &str, data: &[u8]) -> Result<Array> {
    if data.len() < 10 || &data[..6] != b"\x93NUMPY" {
        return Err(bad(name, "not an .npy file"));
    }
    let (len, start) = match data[6] {
        1 => (u16::from_le_bytes([data[8], data[9]]) as usize, 10),
        2 | 3 if data.len() >= 12 => (
            u32::from_le_bytes([data[8], data[9], data[10], data[11]]) as usize,
            12,
        ),
        v => return Err(bad(name, format!("unknown .npy version {v}"))),
    };
    let header = data
        .get(start..start + len)
        .ok_or_else(|| bad(name, "the header is cut off"))?;
    let header = std::str::from_utf8(header).map_err(|_| bad(name, "the header is not text"))?;
    let field = |key: &str| {
        header
            .split_once(&format!("'{key}':"))
            .map(|(_, rest)| rest.trim_start())
    };
    let descr = field("descr")
        .and_then(|r| r.strip_prefix('\''))
        .and_then(|r| r.split_once('\''))
        .map(|r| r.0)
        .ok_or_else(|| bad(name, "the header names no element type"))?;
    if descr.starts_with('>') {
        return Err(bad(
            name,
            "big-endian elements are not supported; save with astype('<f4') or the like",
        ));
    }
    let kind = descr.trim_start_matches(['<', '|', '=']);
    if kind == "O" {
        return Err(
            bad(name, "elements that are Python objects are not supported")
                .help("strings are saved as such with np.save(file, x.astype(str))"),
        );
    }
    let characters = kind.strip_prefix('U').and_then(|n| n.parse::<usize>().ok());
    let found = NAMES.iter().find(|n| n.0 == kind).map(|n| n.1);
    let dtype = found.or(characters.map(|_| DType::Str)).ok_or_else(|| {
        bad(
            name,
            format!("elements of type `{descr}` are not supported"),
        )
    })?;
    if field("fortran_order").is_some_and(|r| r.starts_with("True")) {
        return Err(bad(
            name,
            "column-major order is not supported; save np.ascontiguousarray(x)",
        ));
    }
    let shape = field("shape")
        .and_then(|r| r.strip_prefix('('))
        .and_then(|r| r.split_once(')'))
        .ok_or_else(|| bad(name, "the header has no shape"))?
        .0;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| {
            s.parse()
                .map_err(|_| bad(name, "the shape is not a list of sizes"))
        })
        .collect::<Result<_>>()?;
    let bytes = &data[start + len..];
    let width = match characters {
        Some(n) => n.checked_mul(4),
        None => dtype.size(),
    };
    let want = shape
        .iter()
        .try_fold(width.unwrap_or(1), |n, &d| n.checked_mul(d));
    if want != Some(bytes.len()) {
        return Err(bad(
            name,
            format!(
                "shape {shape:?} of {dtype} does not match {} bytes",
                bytes.len()
            ),
        ));
    }
    let (bytes, strings) = match characters {
        None => (bytes.to_vec(), vec![]),
        Some(n) => {
            // The number of strings without characters is the shape's alone.
            let count = kiln_ir::tensor::element_count(&shape).unwrap_or(0);
            if n == 0 && count > 1 << 30 {
                return Err(bad(name, format!("{count} strings are too many")));
            }
            let all = (0..count).map(|i| text(&bytes[4 * n * i..4 * n * (i + 1)]));
            let all: Option<Vec<String>> = all.collect();
            (
                vec![],
                all.ok_or_else(|| bad(name, "a string has what is no character"))?,
            )
        }
    };
    Ok(Array {
        dtype,
        shape,
        bytes,
        strings,
    })
}

/// A string of UTF-32, behind which are zeros.
fn text(bytes: &[u8]) -> Option<String> {
    let (words, _) = bytes.as_chunks::<4>();
    let end = words
        .iter()
        .rposition(|w| *w != [0; 4])
        .map_or(0, |i| i + 1);
    let characters = words[..end]
        .iter()
        .map(|w| char::from_u32(u32::from_le_bytes(*w)));
    characters.collect()
}

/// Reads an `.npy` file.
pub fn read(path: &Path) -> Result<Array> {
    let data = std::fs::read(path).map_err(|e| bad(&path.display().to_string(), e))?;
    parse(&path.display().to_string(), &data)
}

/// Reads every array of an `.npz` file, with its name.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|e| bad(&name, e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| bad(&name, e))?;
    let mut out = vec![];
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(|e| bad(&name, e))?;
        let key = member.name().trim_end_matches(".npy").to_string();
        let mut data = vec![];
        // A member that unpacks to more than this is a bomb, not an input.
        member
            .by_ref()
            .take(1 << 36)
            .read_to_end(&mut data)
            .map_err(|e| bad(&name, e))?;
        let array = parse(&format!("{name}:{key}"), &data)?;
        out.push((key, array));
    }
    Ok(out)
}

/// Writes an `.npy` file: first under a temporary name.
pub fn write(path: &Path, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let name = path.display().to_string();
    let descr = NAMES.iter().find(|n| n.1 == dtype).map(|n| n.0);
    let descr = descr.ok_or_else(|| bad(&name, format!("{dtype} has no NumPy type")))?;
    let order = if dtype.size() == Some(1) || dtype == DType::BF16 {
        '|'
    } else {
        '<'
    };
    write_array(path, &format!("{order}{descr}"), shape, bytes)
}

/// Bytes of an `.npy` file of strings beyond which none is written: every string takes
/// as much as the longest.
const MOST_BYTES: usize = 1 << 36;

/// The same of strings, as NumPy's `<U`: padded with zeros to the longest, so none may
/// end in one.
pub fn write_strings(path: &Path, shape: &[usize], strings: &[String]) -> Result<()> {
    let name = path.display().to_string();
    if strings.iter().any(|s| s.ends_with('\0')) {
        return Err(bad(
            &name,
            "NumPy's strings cannot end in a zero, and one does",
        ));
    }
    let longest = strings
        .iter()
        .map(|s| s.chars().count())
        .max()
        .unwrap_or(0)
        .max(1);
    let size = strings
        .len()
        .checked_mul(4 * longest)
        .filter(|&n| n <= MOST_BYTES);
    let size = size.ok_or_else(|| {
        let count = strings.len();
        bad(
            &name,
            format!("{count} strings of up to {longest} characters are too much for one file"),
        )
    })?;
    let mut bytes = Vec::with_capacity(size);
    for (i, s) in strings.iter().enumerate() {
        bytes.extend(s.chars().flat_map(|c| (c as u32).to_le_bytes()));
        bytes.resize(4 * longest * (i + 1), 0);
    }
    write_array(path, &format!("<U{longest}"), shape, &bytes)
}

fn write_array(path: &Path, descr: &str, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let dims: Vec<String> = shape.iter().map(|d| format!("{d},")).collect();
    let mut header = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}",
        dims.join(" ")
    );
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 11;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    write_whole(
        path,
        &[b"\x93NUMPY\x01\x00", &length, header.as_bytes(), bytes],
    )
}

/// Writes a file under a temporary name and renames it when it is whole and on the
/// disk: a reader finds all of it or what was there before.
pub fn write_whole(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let save = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    save().map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::run("K0707", format!("cannot write {}: {e}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("kiln-npy-{}.npy", std::process::id()));
        for shape in [vec![], vec![3], vec![2, 3, 1]] {
            let n: usize = shape.iter().product();
            let bytes: Vec<u8> = (0..n * 4).map(|i| i as u8).collect();
            write(&path, DType::F32, &shape, &bytes).unwrap();
            let back = read(&path).unwrap();
            assert_eq!(
                (back.dtype, back.shape, back.bytes),
                (DType::F32, shape, bytes)
            );
        }
        std::fs::remove_file(&path).unwrap();
        assert!(parse("x", b"\x93NUMPY\x01\x00\xff\xff").is_err());
    }

    #[test]
    fn strings_are_written_and_read() {
        let path = std::env::temp_dir().join(format!("kiln-npy-s-{}.npy", std::process::id()));
        for (shape, strings) in [
            (vec![], vec!["é"]),
            (vec![2, 2], vec!["", "a\0b", "naïve 🙂", "x"]),
            (vec![0, 3], vec![]),
            (vec![1], vec![""]),
        ] {
            let strings: Vec<String> = strings.iter().map(|s| s.to_string()).collect();
            write_strings(&path, &shape, &strings).unwrap();
            let back = read(&path).unwrap();
            assert_eq!(back.dtype, DType::Str);
            let back = back.tensor("x").unwrap();
            assert_eq!(back, Tensor::strings(shape, strings).unwrap());
        }
        assert!(write_strings(&path, &[1], &["a\0".into()]).is_err());
        std::fs::remove_file(&path).unwrap();
        let file = |descr: &str, shape: &str, bytes: &[u8]| {
            let header =
                format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
            let length = (header.len() as u16).to_le_bytes();
            [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), bytes].concat()
        };
        // Saved by NumPy with width 0, and characters that are none.
        assert_eq!(
            parse("x", &file("<U0", "(2,)", &[])).unwrap().strings,
            ["", ""]
        );
        for bytes in [[0, 0xd8, 0, 0], [0, 0, 0x11, 0]] {
            assert!(parse("x", &file("<U1", "(1,)", &bytes)).is_err());
        }
        for (descr, shape) in [
            ("<U1", "(2,)"),
            ("|O", "(1,)"),
            ("<U18446744073709551615", "(1,)"),
            ("<U0", "(4611686018427387904,)"),
            (">U1", "(1,)"),
            ("<U-1", "(1,)"),
        ] {
            assert!(
                parse("x", &file(descr, shape, &[0; 4])).is_err(),
                "{descr} {shape}"
            );
        }
    }
}
