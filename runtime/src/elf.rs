//! A small loader for the objects that Kiln's compiler writes: x86-64 ELF
//! relocatables with position-independent code and a closed list of
//! relocations. An artifact is trusted code: what it does once loaded is not
//! checked, but a damaged object never loads.

use crate::error::{Error, Result};
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget,
    SectionKind, elf,
};
use std::collections::BTreeMap;

/// A kernel's function.
pub type Kernel = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8) -> i32;

/// Loaded code.
pub struct Code {
    base: *mut u8,
    len: usize,
    symbols: BTreeMap<String, usize>,
}

// SAFETY: the mapping is read-only once loaded.
unsafe impl Send for Code {}
unsafe impl Sync for Code {}

fn bad(message: impl Into<String>) -> Error {
    Error::input(
        "K0705",
        format!("the artifact's machine code is damaged: {}", message.into()),
    )
}

const PAGE: usize = 4096;

impl Code {
    /// Maps the object's sections, applies its relocations, and makes code
    /// executable and everything read-only.
    pub fn load(bytes: &[u8]) -> Result<Code> {
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(|e| bad(e.to_string()))?;
        if file.architecture() != object::Architecture::X86_64 {
            return Err(bad("it is not x86-64 code"));
        }
        // Text first, on pages of its own, then constants.
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        let mut at = 0usize;
        let wanted = |kind: SectionKind| match kind {
            SectionKind::Text => Some(true),
            SectionKind::ReadOnlyData
            | SectionKind::ReadOnlyString
            | SectionKind::ReadOnlyDataWithRel => Some(false),
            _ => None,
        };
        let mut text_end = 0;
        for text in [true, false] {
            for section in file.sections().filter(|s| wanted(s.kind()) == Some(text)) {
                let align = usize::try_from(section.align())
                    .ok()
                    .filter(|a| a.is_power_of_two() && *a <= PAGE);
                at = at.next_multiple_of(
                    align
                        .ok_or_else(|| bad("a section's alignment is absurd"))?
                        .max(1),
                );
                places.insert(section.index().0, at);
                let size = section.data().map_err(|e| bad(e.to_string()))?.len();
                at = at
                    .checked_add(size)
                    .filter(|&n| n < 1 << 31)
                    .ok_or_else(|| bad("it is too large"))?;
            }
            at = at.next_multiple_of(PAGE);
            if text {
                text_end = at;
            }
        }
        for section in file.sections() {
            let loads = matches!(
                section.kind(),
                SectionKind::Data
                    | SectionKind::UninitializedData
                    | SectionKind::Tls
                    | SectionKind::UninitializedTls
            );
            if loads && section.size() > 0 {
                return Err(bad(format!(
                    "it has a writable section `{}`",
                    section.name().unwrap_or("?")
                )));
            }
        }
        let len = at.max(PAGE);
        // SAFETY: a fresh private anonymous mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::run(
                "K0706",
                format!("no memory for {len} bytes of machine code"),
            ));
        }
        let mut code = Code {
            base: base.cast(),
            len,
            symbols: BTreeMap::new(),
        };
        // SAFETY: the mapping has `len` writable bytes and no other user yet.
        let memory = unsafe { std::slice::from_raw_parts_mut(code.base, len) };
        for section in file.sections() {
            if let Some(&place) = places.get(&section.index().0) {
                let data = section.data().map_err(|e| bad(e.to_string()))?;
                memory[place..place + data.len()].copy_from_slice(data);
            }
        }
        for section in file.sections() {
            let Some(&place) = places.get(&section.index().0) else {
                continue;
            };
            for (offset, relocation) in section.relocations() {
                let symbol = match relocation.target() {
                    RelocationTarget::Symbol(i) => {
                        file.symbol_by_index(i).map_err(|e| bad(e.to_string()))?
                    }
                    _ => return Err(bad("a relocation has no symbol")),
                };
                let name = symbol.name().unwrap_or("?");
                let target = match symbol.section_index().and_then(|s| places.get(&s.0)) {
                    Some(&p) if symbol.address() < len as u64 => {
                        code.base as i64 + p as i64 + symbol.address() as i64
                    }
                    Some(_) => return Err(bad(format!("`{name}` lies outside the code"))),
                    None => outside(name)
                        .ok_or_else(|| bad(format!("it refers to `{name}`, which is not there")))?,
                };
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    return Err(bad("a relocation is not ELF"));
                };
                let at = usize::try_from(offset)
                    .ok()
                    .and_then(|o| place.checked_add(o))
                    .ok_or_else(|| bad("a relocation lies outside"))?;
                let value = target.wrapping_add(relocation.addend());
                let here = code.base as i64 + at as i64;
                let size = if r_type == elf::R_X86_64_64 { 8 } else { 4 };
                let slot = memory
                    .get_mut(at..at + size)
                    .ok_or_else(|| bad("a relocation lies outside"))?;
                match r_type {
                    elf::R_X86_64_64 => slot.copy_from_slice(&value.to_le_bytes()),
                    elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
                        let distance = value.checked_sub(here).and_then(|d| i32::try_from(d).ok());
                        let short = distance.ok_or_else(|| {
                            bad(format!("`{name}` is too far away for a 32-bit reference"))
                        })?;
                        slot.copy_from_slice(&short.to_le_bytes());
                    }
                    other => {
                        return Err(bad(format!(
                            "relocation type {other} (for `{name}`) is not supported"
                        )));
                    }
                }
            }
        }
        for symbol in file
            .symbols()
            .filter(|s| s.is_global() && s.is_definition())
        {
            let place = symbol.section_index().and_then(|s| places.get(&s.0));
            if let (Some(&p), Ok(name)) = (place, symbol.name()) {
                let at = p
                    .checked_add(symbol.address() as usize)
                    .filter(|&a| a < text_end);
                code.symbols.insert(
                    name.to_string(),
                    at.ok_or_else(|| bad(format!("`{name}` lies outside the code")))?,
                );
            }
        }
        // SAFETY: both ranges are whole pages of the mapping.
        let sealed = unsafe {
            libc::mprotect(
                code.base.cast(),
                text_end,
                libc::PROT_READ | libc::PROT_EXEC,
            ) == 0
                && (len == text_end
                    || libc::mprotect(
                        code.base.add(text_end).cast(),
                        len - text_end,
                        libc::PROT_READ,
                    ) == 0)
        };
        if !sealed {
            return Err(Error::run(
                "K0706",
                "the system does not let machine code be made executable",
            ));
        }
        Ok(code)
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        let at = *self.symbols.get(name)?;
        // SAFETY: the symbol lies in the mapped code, and artifacts define only
        // kernels of this signature (an artifact is trusted code).
        Some(unsafe { std::mem::transmute::<*mut u8, Kernel>(self.base.add(at)) })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The functions that objects may call.
fn outside(name: &str) -> Option<i64> {
    // No trampolines: within reach of 32 bits only by luck, so the compiler
    // emits no calls; the names exist for a clear error.
    let _ = name;
    None
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: mapped in `load`; no kernel runs once its code is dropped.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
