//! The artifact: one file with a manifest (the plan as JSON) and sections of
//! bytes. Every byte is covered by a hash; opening checks them all.
//!
//! ```text
//! 0   magic "KILNART\0"    8  version u32    12 sections u32
//! 16  table offset u64    24  table hash u64 32 file length u64
//! 40  hash of bytes 0..40 48  zeros to 64
//! 64  sections, each at a multiple of 64
//! …   table: per section offset u64, length u64, hash u64
//! ```
//! Section 0 is the manifest. Building the same artifact twice gives the same
//! bytes: there are no times, paths or random ids in it.

use crate::error::{Error, Result};
use crate::memory::ALIGN;
use crate::plan::{self, GlobalData, Program, Tuned, Versioned};
use crate::strings::Constants;
use crate::tuned;
use kiln_ir::DType;
use memmap2::{Mmap, MmapMut};
use serde_json::Value;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: &[u8; 8] = b"KILNART\0";
/// Version of the file format.
pub const FORMAT_VERSION: u32 = 1;
const HEADER: u64 = 64;
const ROW: usize = 24;

/// Writes an artifact: sections first, the manifest at the end, everything into
/// a temporary file that takes the final name only when it is whole. Sections whose
/// length is known get their place at once and are filled in any order, also by
/// several threads: the bytes are the same.
pub struct ArtifactWriter {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    at: u64,
    rows: Vec<Row>,
    done: bool,
}

/// A section: where it is, and its hash once it is filled.
struct Row {
    at: u64,
    bytes: u64,
    hash: OnceLock<u64>,
}

fn io(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::run("K0707", format!("cannot {what} {}: {e}", path.display()))
}

impl ArtifactWriter {
    /// Starts an artifact at this path.
    pub fn create(path: &Path) -> Result<ArtifactWriter> {
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(|e| io("write", path, e))?;
        Ok(ArtifactWriter {
            file,
            temporary,
            target: path.to_path_buf(),
            at: HEADER,
            // Row 0 is the manifest's, known last.
            rows: vec![Row {
                at: 0,
                bytes: 0,
                hash: OnceLock::new(),
            }],
            done: false,
        })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        (self.file.write_all_at(bytes, at)).map_err(|e| io("write", &self.target, e))
    }

    /// Room for `bytes` bytes; where they are. What is skipped before them was never
    /// written, and reads as zeros.
    fn room(&mut self, bytes: u64) -> Row {
        let at = self.at.next_multiple_of(ALIGN as u64);
        self.at = at + bytes;
        let hash = OnceLock::new();
        Row { at, bytes, hash }
    }

    /// A section of so many bytes, to be filled; its number.
    pub fn reserve(&mut self, bytes: u64) -> u32 {
        let row = self.room(bytes);
        self.rows.push(row);
        self.rows.len() as u32 - 1
    }

    /// Fills a section from chunks, once.
    pub fn fill<'a>(&self, section: u32, chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<()> {
        let wrong = |what: String| Error::run("K0707", format!("section {section} {what}"));
        let row = self.rows.get(section as usize);
        let row = row.ok_or_else(|| wrong("is not reserved".into()))?;
        let (mut at, end) = (row.at, row.at + row.bytes);
        let mut hash = Xxh3::new();
        for chunk in chunks {
            if chunk.len() as u64 > end - at {
                return Err(wrong(format!("has more than {} bytes", row.bytes)));
            }
            hash.update(chunk);
            self.write(at, chunk)?;
            at += chunk.len() as u64;
        }
        if at != end || row.hash.set(hash.digest()).is_err() {
            return Err(wrong(format!("is not {} bytes, once", row.bytes)));
        }
        start_writing_back(&self.file, row.at, row.bytes);
        Ok(())
    }

    /// Adds a section; its number.
    pub fn section(&mut self, bytes: &[u8]) -> Result<u32> {
        let section = self.reserve(bytes.len() as u64);
        self.fill(section, [bytes])?;
        Ok(section)
    }

    /// Writes the manifest and the table, and gives the file its name.
    pub fn finish(self, program: &Program) -> Result<u64> {
        let manifest = serde_json::to_vec(program)
            .map_err(|e| Error::run("K0707", format!("the plan does not serialize: {e}")))?;
        self.finish_with(&manifest)
    }

    fn finish_with(mut self, manifest: &[u8]) -> Result<u64> {
        self.rows[0] = self.room(manifest.len() as u64);
        self.fill(0, [manifest])?;
        let mut table = vec![];
        for (i, row) in self.rows.iter().enumerate() {
            let hash = row.hash.get();
            let hash = hash.ok_or_else(|| {
                Error::run("K0707", format!("section {i} was reserved and not filled"))
            })?;
            [row.at, row.bytes, *hash]
                .iter()
                .for_each(|v| table.extend(v.to_le_bytes()));
        }
        let table_at = self.room(table.len() as u64).at;
        self.write(table_at, &table)?;
        let mut header = Vec::with_capacity(HEADER as usize);
        header.extend(MAGIC);
        header.extend(FORMAT_VERSION.to_le_bytes());
        header.extend((self.rows.len() as u32).to_le_bytes());
        header.extend(table_at.to_le_bytes());
        header.extend(xxh3_64(&table).to_le_bytes());
        header.extend(self.at.to_le_bytes());
        header.extend(xxh3_64(&header).to_le_bytes());
        header.resize(HEADER as usize, 0);
        self.write(0, &header)?;
        let fail = |e| io("write", &self.target, e);
        self.file.sync_all().map_err(fail)?;
        std::fs::rename(&self.temporary, &self.target).map_err(fail)?;
        self.done = true;
        Ok(self.at)
    }
}

/// Has the system begin to write these bytes to the disk, so that the end waits for
/// the last of them only. Where it does not, the end waits longer.
fn start_writing_back(file: &File, at: u64, bytes: u64) {
    if let (Ok(at), Ok(bytes)) = (i64::try_from(at), i64::try_from(bytes)) {
        // SAFETY: a system call on an open file; it changes no contents.
        unsafe { libc::sync_file_range(file.as_raw_fd(), at, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

impl Drop for ArtifactWriter {
    fn drop(&mut self) {
        if !self.done {
            // Nothing half-written stays behind; if removal fails, so be it.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// An opened artifact: the plan, and its sections mapped from the file.
#[derive(Clone)]
pub struct Artifact {
    /// The plan, validated.
    pub program: Arc<Program>,
    pub(crate) strings: Arc<Constants>,
    map: Arc<Mmap>,
    rows: Arc<Vec<(usize, usize)>>,
}

impl Artifact {
    /// Opens, checks and maps an artifact.
    pub fn open(path: &Path) -> Result<Artifact> {
        let file = File::open(path)
            .map_err(|e| Error::input("K0700", format!("cannot open {}: {e}", path.display())))?;
        // SAFETY: the file is mapped privately; whoever truncates it while it is
        // in use gets what the documentation warns of.
        let map = unsafe { memmap2::MmapOptions::new().populate().map(&file) }
            .map_err(|e| Error::input("K0700", format!("cannot map {}: {e}", path.display())))?;
        Artifact::check(map, &path.display().to_string())
    }

    /// The same over a copy of bytes in memory; `name` stands for the file in
    /// errors.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Artifact> {
        let none = |e| Error::run("K0715", format!("no memory for {} bytes: {e}", bytes.len()));
        // A mapping of its own, because sections need more than a vector's alignment.
        let mut map = MmapMut::map_anon(bytes.len()).map_err(none)?;
        map.copy_from_slice(bytes);
        Artifact::check(map.make_read_only().map_err(none)?, name)
    }

    /// Writes the artifact anew, with other rows of what was measured for one of its GPU
    /// targets. K0703 if they refer to what is not there, K0707 if it cannot be written; a
    /// file of that name stays as it was until the new one is whole.
    pub fn retuned(&self, gpu: usize, rows: &[Tuned], out: &Path) -> Result<u64> {
        let wrong = |what: String| Error::input("K0703", format!("what was measured: {what}"));
        let code = self.program.gpu.get(gpu);
        let code = code.ok_or_else(|| wrong(format!("there is no GPU target {gpu}")))?;
        tuned::validate(rows, &code.kernels).map_err(wrong)?;
        let mut writer = ArtifactWriter::create(out)?;
        for section in 1..self.rows.len() as u32 {
            writer.section(self.section(section))?;
        }
        // The text of the plan is changed, not written from the plan: so the runtime alone
        // need not be able to write one.
        let failed = |e| Error::run("K0707", format!("the plan does not serialize: {e}"));
        let mut plan: Value = serde_json::from_slice(self.section(0)).map_err(failed)?;
        plan["gpu"][gpu]["tuned"] = serde_json::to_value(rows).map_err(failed)?;
        writer.finish_with(plan.to_string().as_bytes())
    }

    fn check(map: Mmap, name: &str) -> Result<Artifact> {
        let foreign = || {
            Error::input("K0701", format!("{name} is not a Kiln artifact"))
                .help("make one with `kiln compile MODEL -o OUT.kiln`")
        };
        let damaged = |at: u64, what: &str| {
            Error::input("K0703", format!("{name} is damaged at byte {at}: {what}"))
                .help("compile the model again")
        };
        if map.len() < 8 || &map[..8] != MAGIC {
            return Err(foreign());
        }
        if (map.len() as u64) < HEADER {
            return Err(damaged(map.len() as u64, "it ends within its header"));
        }
        let u32_at =
            |at: usize| u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
        let u64_at = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&map[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        if xxh3_64(&map[..40]) != u64_at(40) || map[48..64].iter().any(|&b| b != 0) {
            return Err(damaged(0, "its header does not match its hash"));
        }
        let version = u32_at(8);
        if version != FORMAT_VERSION {
            return Err(Error::input(
                "K0702",
                format!("{name} has format version {version}, this runtime reads {FORMAT_VERSION}"),
            )
            .help("compile the model again with this version of kiln"));
        }
        let len = map.len() as u64;
        if u64_at(32) != len {
            return Err(damaged(len, &format!("{} bytes are expected", u64_at(32))));
        }
        let (count, table_at) = (u32_at(12) as usize, u64_at(16));
        let table = usize::try_from(table_at)
            .ok()
            .and_then(|at| map.get(at..at.checked_add(count.checked_mul(ROW)?)?))
            .ok_or_else(|| damaged(16, "its table lies outside"))?;
        if xxh3_64(table) != u64_at(24)
            || count == 0
            || table_at as usize + table.len() != map.len()
        {
            return Err(damaged(table_at, "its table does not match its hash"));
        }
        let mut rows = Vec::with_capacity(count);
        let mut covered = vec![];
        for i in 0..count {
            let base = table_at as usize + i * ROW;
            let (at, size, hash) = (u64_at(base), u64_at(base + 8), u64_at(base + 16));
            let bytes = usize::try_from(at)
                .ok()
                .and_then(|a| map.get(a..a.checked_add(usize::try_from(size).ok()?)?))
                .ok_or_else(|| damaged(base as u64, "a section lies outside"))?;
            // Kernels load whole registers from where weights lie.
            if at % ALIGN as u64 != 0 {
                return Err(damaged(base as u64, "a section lies at no multiple of 64"));
            }
            if xxh3_64(bytes) != hash {
                return Err(damaged(
                    at,
                    &format!("section {i} ({size} bytes) does not match its hash"),
                ));
            }
            rows.push((at as usize, size as usize));
            covered.push((at as usize, (at + size) as usize));
        }
        // What lies between sections is zero: so every byte is checked.
        covered.push((table_at as usize, map.len()));
        covered.sort_unstable();
        let mut at = HEADER as usize;
        for (low, high) in covered {
            if low > at && map[at..low].iter().any(|&b| b != 0) {
                return Err(damaged(at as u64, "bytes between sections are not zero"));
            }
            at = at.max(high);
        }
        let manifest = &map[rows[0].0..rows[0].0 + rows[0].1];
        let unread = |e| Error::input("K0703", format!("{name}: the manifest is damaged: {e}"));
        // A plan of another version may have any other form.
        let Versioned { version } = serde_json::from_slice(manifest).map_err(unread)?;
        plan::check_version(version)?;
        let program: Program = serde_json::from_slice(manifest).map_err(unread)?;
        let lengths: Vec<usize> = rows.iter().map(|r| r.1).collect();
        program.validate(&lengths)?;
        let section = |s: u32| {
            let (at, size) = rows[s as usize];
            &map[at..at + size]
        };
        let strings = Constants::read(program.strings.map_or(&[], section)).map_err(|e| {
            Error::input(
                "K0703",
                format!("{name}: the string constants are damaged: {e}"),
            )
            .help("compile the model again")
        })?;
        for g in program.globals.iter().filter(|g| g.dtype == DType::Str) {
            if let GlobalData::Section(s) = g.data
                && !strings.hold(section(s))
            {
                return Err(Error::input(
                    "K0703",
                    format!("{name}: @{} refers to strings that are not there", g.name),
                )
                .help("compile the model again"));
            }
        }
        Ok(Artifact {
            program: Arc::new(program),
            strings: Arc::new(strings),
            map: Arc::new(map),
            rows: Arc::new(rows),
        })
    }

    /// The bytes of a section (none for a number that is not there).
    pub fn section(&self, index: u32) -> &[u8] {
        match self.rows.get(index as usize) {
            Some(&(at, len)) => &self.map[at..at + len],
            None => &[],
        }
    }

    /// Bytes of the file.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: an artifact has a header.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}
