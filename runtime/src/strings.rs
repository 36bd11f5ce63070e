//! Strings of a running model. In its memory an element is a handle, an i64: 0 is the
//! empty string, then come the artifact's constants in their order, then what a run
//! meets. Equal strings have equal handles, so kernels move and compare strings as the
//! integers that they are, and zeroed memory holds strings. Handles are made where a
//! run begins and by the steps in here, and are strings again where it ends; then all
//! but the constants are forgotten.

use crate::error::{Error, Result};
use crate::exec::Run;
use crate::plan::{Entry, Step};
use kiln_ir::ops::strings::StringFn;
use kiln_ir::strings::{Pattern, format_number, join, parse_number, ranks, split};
use kiln_ir::tensor::Encoder;
use kiln_ir::{DType, Dim};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes of text that one run may make and take.
const MOST_BYTES: usize = 1 << 32;

/// The strings that an artifact brings.
#[derive(Debug, Default)]
pub(crate) struct Constants {
    texts: Vec<Arc<str>>,
    handles: HashMap<Arc<str>, i64>,
}

impl Constants {
    /// Reads the artifact's section: of each string its bytes' number (u32) and they.
    /// None is empty, and none is there twice: equal strings have equal handles.
    pub(crate) fn read(mut section: &[u8]) -> std::result::Result<Constants, String> {
        let mut out = Constants::default();
        while !section.is_empty() {
            let number = out.texts.len() + 1;
            let cut = || format!("string {number} is cut off");
            let (length, rest) = section.split_first_chunk::<4>().ok_or_else(cut)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (text, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
            let text =
                std::str::from_utf8(text).map_err(|_| format!("string {number} is not UTF-8"))?;
            let text: Arc<str> = text.into();
            if text.is_empty() || out.handles.insert(text.clone(), number as i64).is_some() {
                return Err(format!("string {number} is empty or there twice"));
            }
            out.texts.push(text);
            section = rest;
        }
        Ok(out)
    }

    /// Whether all of these bytes are handles of constants.
    pub(crate) fn hold(&self, bytes: &[u8]) -> bool {
        let (handles, rest) = bytes.as_chunks::<8>();
        let known = |h: &[u8; 8]| (0..=self.texts.len() as i64).contains(&i64::from_le_bytes(*h));
        rest.is_empty() && handles.iter().all(known)
    }
}

/// Collects the constants of an artifact that is written.
#[derive(Debug, Default)]
pub struct Collector {
    section: Vec<u8>,
    handles: HashMap<String, i64>,
}

impl Collector {
    /// The handle of a constant.
    pub fn handle(&mut self, text: &str) -> Result<i64> {
        if text.is_empty() {
            return Ok(0);
        }
        if let Some(&h) = self.handles.get(text) {
            return Ok(h);
        }
        let length = u32::try_from(text.len()).map_err(|_| {
            Error::input(
                "K0726",
                format!("a constant string has {} bytes", text.len()),
            )
        })?;
        self.section.extend(length.to_le_bytes());
        self.section.extend(text.as_bytes());
        let handle = self.handles.len() as i64 + 1;
        self.handles.insert(text.to_string(), handle);
        Ok(handle)
    }

    /// The section that holds them.
    pub fn section(&self) -> &[u8] {
        &self.section
    }
}

/// The strings of a session.
pub(crate) struct Table {
    constants: Arc<Constants>,
    texts: Vec<Arc<str>>,
    handles: HashMap<Arc<str>, i64>,
    bytes: usize,
}

impl Table {
    pub(crate) fn new(constants: Arc<Constants>) -> Table {
        Table {
            constants,
            texts: vec![],
            handles: HashMap::new(),
            bytes: 0,
        }
    }

    /// Forgets all but the constants.
    pub(crate) fn clear(&mut self) {
        self.texts.clear();
        self.handles.clear();
        self.bytes = 0;
    }

    /// How many strings it holds besides the constants.
    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    /// A string's handle.
    pub(crate) fn handle(&mut self, text: &str) -> Result<i64> {
        if text.is_empty() {
            return Ok(0);
        }
        let known = self
            .constants
            .handles
            .get(text)
            .or_else(|| self.handles.get(text));
        if let Some(&h) = known {
            return Ok(h);
        }
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > MOST_BYTES {
            let message = format!("the strings of this run take more than {MOST_BYTES} bytes");
            return Err(Error::run("K0726", message).help("give fewer or shorter strings"));
        }
        let text: Arc<str> = text.into();
        self.texts.push(text.clone());
        let handle = (self.constants.texts.len() + self.texts.len()) as i64;
        self.handles.insert(text, handle);
        Ok(handle)
    }

    /// The string of a handle; none that nobody made is taken.
    pub(crate) fn text(&self, handle: i64) -> Result<Arc<str>> {
        let found = match usize::try_from(handle) {
            Ok(0) => Some(Arc::from("")),
            Ok(i) if i <= self.constants.texts.len() => self.constants.texts.get(i - 1).cloned(),
            Ok(i) => self.texts.get(i - 1 - self.constants.texts.len()).cloned(),
            Err(_) => None,
        };
        found.ok_or_else(|| {
            Error::run(
                "K0727",
                format!("there is no string with the handle {handle}"),
            )
            .help("the artifact is damaged: compile the model again")
        })
    }
}

/// The compiled expressions of a plan, by their text.
pub(crate) fn patterns(entries: &[Entry]) -> BTreeMap<String, Pattern> {
    let mut out = BTreeMap::new();
    let mut open: Vec<&Step> = entries.iter().flat_map(|e| &e.steps).collect();
    while let Some(step) = open.pop() {
        match step {
            Step::Strings {
                f: StringFn::FullMatch(text),
                ..
            } => {
                // `Program::validate` has refused what does not compile.
                if let Ok(p) = Pattern::new(text) {
                    out.insert(text.clone(), p);
                }
            }
            Step::If {
                then, otherwise, ..
            } => open.extend(then.iter().chain(otherwise)),
            Step::Loop(l) => open.extend(&l.body),
            _ => {}
        }
    }
    out
}

/// A step's failure at an element.
fn at(label: &str, i: usize, what: String) -> Error {
    Error::run("K0728", format!("{label}: element {i}: {what}"))
        .help("check the strings that are given to the model")
}

impl Run<'_> {
    /// The elements of a buffer, `n` of `width` bytes.
    fn elements(&mut self, buffer: u32, n: usize, width: usize, label: &str) -> Result<*mut u8> {
        let place = self.pointer(buffer)?;
        let need = n.checked_mul(width);
        match self.sizes[buffer as usize] {
            Some(have) if need.is_none_or(|need| need > have) => Err(Error::run(
                "K0725",
                format!("{label}: a buffer is too small"),
            )),
            _ => Ok(place),
        }
    }

    fn read_strings(&mut self, buffer: u32, n: usize, label: &str) -> Result<Vec<Arc<str>>> {
        let from = self.elements(buffer, n, 8, label)?.cast::<i64>();
        // SAFETY: the buffer has `n` handles, as was just checked.
        (0..n)
            .map(|i| self.strings.text(unsafe { from.add(i).read_unaligned() }))
            .collect()
    }

    fn write_bytes(
        &mut self,
        buffer: u32,
        n: usize,
        width: usize,
        bytes: &[u8],
        label: &str,
    ) -> Result<()> {
        let to = self.elements(buffer, n, width, label)?;
        let bytes = &bytes[..bytes.len().min(n * width)];
        // SAFETY: the buffer has `n` elements, as was just checked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn count(&self, dim: &Dim, label: &str) -> Result<usize> {
        let n = dim
            .eval(&self.binding)
            .ok()
            .and_then(|n| usize::try_from(n).ok());
        n.ok_or_else(|| Error::run("K0720", format!("{label}: the size `{dim}` has no value")))
    }

    /// Runs a step on strings, and takes its time where that is asked for.
    pub(crate) fn string_step(&mut self, step: &Step) -> Result<()> {
        let watch = self.watch();
        let (kernel, label, n) = match step {
            Step::Strings {
                f,
                args,
                dtype,
                count,
                to,
                label,
            } => {
                let n = self.count(count, label)?;
                self.map_strings(f, args, *dtype, n, *to, label)?;
                (f.name(), label, n)
            }
            Step::SplitStrings {
                from,
                delimiter,
                most,
                count,
                symbol,
                pieces,
                counts,
                label,
            } => {
                let n = self.count(count, label)?;
                let texts = self.read_strings(*from, n, label)?;
                let most = most.map(|m| usize::try_from(m).unwrap_or(usize::MAX));
                let rows: Vec<Vec<&str>> =
                    texts.iter().map(|s| split(s, delimiter, most)).collect();
                let width = rows.iter().map(Vec::len).max().unwrap_or(0);
                self.binding.insert(symbol.as_str().into(), width as i64);
                let total = n.saturating_mul(width);
                let to = self.elements(*pieces, total, 8, label)?.cast::<i64>();
                for (r, row) in rows.iter().enumerate() {
                    for k in 0..width {
                        let piece = row.get(k).copied().unwrap_or_default();
                        let handle = self.strings.handle(piece)?;
                        // SAFETY: the buffer has `total` elements, as was just checked.
                        unsafe { to.add(r * width + k).write_unaligned(handle) };
                    }
                }
                let lengths: Vec<u8> = rows
                    .iter()
                    .flat_map(|r| (r.len() as i64).to_le_bytes())
                    .collect();
                self.write_bytes(*counts, n, 8, &lengths, label)?;
                ("string_split", label, n)
            }
            _ => return Err(Error::run("K0720", "a step is not what it was taken for")),
        };
        self.note(watch, label, kernel, 0, 8 * n as i64);
        Ok(())
    }

    fn map_strings(
        &mut self,
        f: &StringFn,
        args: &[u32],
        dtype: DType,
        n: usize,
        to: u32,
        label: &str,
    ) -> Result<()> {
        let wrong = || Error::run("K0720", "a step is not what it was taken for");
        let first = *args.first().ok_or_else(wrong)?;
        let mut out = vec![];
        let mut width = 8;
        let mut made = |run: &mut Self, i: usize, text: std::result::Result<String, String>| {
            let text = text.map_err(|e| at(label, i, e))?;
            out.extend(run.strings.handle(&text)?.to_le_bytes());
            Ok::<(), Error>(())
        };
        match f {
            StringFn::Concat => {
                let a = self.read_strings(first, n, label)?;
                let b = self.read_strings(*args.get(1).ok_or_else(wrong)?, n, label)?;
                for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                    made(self, i, join(a, b))?;
                }
            }
            StringFn::Lower(l) => {
                for (i, s) in self.read_strings(first, n, label)?.iter().enumerate() {
                    made(self, i, Ok(l.lower(s)))?;
                }
            }
            StringFn::Upper(l) => {
                for (i, s) in self.read_strings(first, n, label)?.iter().enumerate() {
                    made(self, i, Ok(l.upper(s)))?;
                }
            }
            StringFn::FullMatch(text) => {
                let texts = self.read_strings(first, n, label)?;
                let pattern = self.model.pattern(text).ok_or_else(wrong)?;
                out = texts.iter().map(|s| u8::from(pattern.matches(s))).collect();
                width = 1;
            }
            StringFn::Parse(dtype) => {
                let mut encoder = Encoder::new(*dtype, n);
                for (i, s) in self.read_strings(first, n, label)?.iter().enumerate() {
                    let read = parse_number(s, *dtype, &mut encoder);
                    read.map_err(|e| at(label, i, format!("{s:?} is {e}")))?;
                }
                out = encoder.finish();
                width = dtype.size().ok_or_else(wrong)?;
            }
            StringFn::Rank => {
                let all = ranks(&self.read_strings(first, n, label)?);
                out = all.iter().flat_map(|r| r.to_le_bytes()).collect();
            }
            StringFn::Format => {
                let size = dtype.size().ok_or_else(wrong)?;
                let from = self.elements(first, n, size, label)?;
                // SAFETY: the buffer has these bytes, as was just checked.
                let bytes = unsafe { std::slice::from_raw_parts(from, n * size) };
                for i in 0..n {
                    made(self, i, Ok(format_number(dtype, bytes, i)))?;
                }
            }
        }
        self.write_bytes(to, n, width, &out, label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_read_or_refused() {
        let mut c = Collector::default();
        let handles = ["b", "", "é", "b"].map(|s| c.handle(s).unwrap());
        assert_eq!(handles, [1, 0, 2, 1]);
        let read = Constants::read(c.section()).unwrap();
        assert_eq!(
            read.texts.iter().map(|s| &**s).collect::<Vec<_>>(),
            ["b", "é"]
        );
        assert!(read.hold(&[0u64, 2, 1].map(u64::to_le_bytes).concat()));
        for bad in [&[3u64][..], &[u64::MAX]] {
            assert!(
                !read.hold(
                    &bad.iter()
                        .flat_map(|h| h.to_le_bytes())
                        .collect::<Vec<u8>>()
                )
            );
        }
        assert!(!read.hold(&[0; 7]));
        let one = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
        let refused = |section: &[u8]| Constants::read(section).unwrap_err();
        assert_eq!(refused(&[1, 0, 0]), "string 1 is cut off");
        assert_eq!(
            refused(&[one(b"a"), vec![255, 255, 255, 255]].concat()),
            "string 2 is cut off"
        );
        assert_eq!(refused(&one(b"\xff")), "string 1 is not UTF-8");
        assert_eq!(
            refused(&[one(b"a"), one(b"a")].concat()),
            "string 2 is empty or there twice"
        );
        assert_eq!(refused(&one(b"")), "string 1 is empty or there twice");
    }

    #[test]
    fn handles_are_strings_and_are_forgotten() {
        let mut c = Collector::default();
        c.handle("constant").unwrap();
        let mut t = Table::new(Arc::new(Constants::read(c.section()).unwrap()));
        for _ in 0..2 {
            assert_eq!(
                ["", "constant", "x", "y", "x"].map(|s| t.handle(s).unwrap()),
                [0, 1, 2, 3, 2]
            );
            assert_eq!(
                [0, 1, 2, 3].map(|h| t.text(h).unwrap().to_string()),
                ["", "constant", "x", "y"]
            );
            assert_eq!(t.len(), 2);
            for h in [4, -1, i64::MAX, i64::MIN] {
                assert_eq!(t.text(h).unwrap_err().code, "K0727");
            }
            t.clear();
            assert_eq!(t.text(2).unwrap_err().code, "K0727");
        }
    }
}
