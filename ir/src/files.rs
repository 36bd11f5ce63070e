//! `.kir` files, with their big constants in one file beside them.

use crate::module::Module;
use crate::parse::{Loader, parse_module};
use crate::print::{PrintOptions, print_with_blobs};
use crate::tensor::Bytes;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

/// Constants start at multiples of this.
const ALIGN: u64 = 64;

/// Writes `path`, and the constants to the same name ending in `.bin` (if there
/// are any).
pub fn save(module: &Module, path: &Path, options: &PrintOptions) -> io::Result<()> {
    let bin = path.with_extension("bin");
    let name = bin.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| io::Error::other("K0203: the path names no file"))?;
    let (mut out, mut at, mut failed) = (None, 0, None);
    let text = print_with_blobs(module, options, &mut |bytes| {
        let start = at;
        if failed.is_none() {
            failed = append(&mut out, &bin, bytes, &mut at).err();
        }
        (name.clone(), start)
    });
    if let Some(e) = failed {
        return Err(e);
    }
    if let Some(mut out) = out {
        out.flush()?;
    }
    std::fs::write(path, text)
}

fn append(
    out: &mut Option<BufWriter<File>>,
    bin: &Path,
    bytes: &[u8],
    at: &mut u64,
) -> io::Result<()> {
    let out = match out {
        Some(out) => out,
        None => out.insert(BufWriter::new(File::create(bin)?)),
    };
    out.write_all(bytes)?;
    let end = *at + bytes.len() as u64;
    let next = end.next_multiple_of(ALIGN);
    out.write_all(&[0; ALIGN as usize][..(next - end) as usize])?;
    *at = next;
    Ok(())
}

/// Reads a `.kir` file, with the files that it names from its own folder.
pub fn load(path: &Path) -> Result<Module, String> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|e| format!("K0202: {}: {e}", path.display()))?;
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    parse_module(&text, &Folder(folder)).map_err(|e| format!("{}: {e}", path.display()))
}

/// Loads files of one folder, and of no other.
pub struct Folder(pub PathBuf);

impl Loader for Folder {
    fn load(&self, file: &str, offset: u64, length: u64) -> Result<Bytes, String> {
        let path = Path::new(file);
        let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !inside {
            return Err(format!("`{file}` is not inside the folder of this text"));
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut f = File::open(self.0.join(path))?;
            // A length that the file does not have takes no memory.
            let size = f.metadata()?.len();
            if offset.checked_add(length).is_none_or(|end| end > size) {
                return Err(io::Error::other(format!("the file has {size} bytes")));
            }
            f.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; length as usize];
            f.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e| format!("`{file}`, {length} bytes at {offset}: {e}"))?;
        Ok(bytes.into())
    }
}
