//! Kernels in PTX text: parameters, limits, blocks, labels, registers.

use super::ast::{Entry, Space, VarRef};
use super::lex::{Place, Word};
use super::parse::{MAX_REGISTERS, Parser, Symbol, error};
use super::types::Ty;
use crate::error::Result;
use std::collections::HashMap;

/// Blocks inside each other at most.
const MAX_SCOPES: usize = 64;
/// Names that registers of the ISA have.
const TAKEN: [&str; 8] = [
    "%tid",
    "%ntid",
    "%ctaid",
    "%nctaid",
    "%laneid",
    "%warpid",
    "%clusterid",
    "%clock",
];

impl<'a> Parser<'a> {
    pub(super) fn entry_mut(&mut self) -> &mut Entry<'a> {
        if self.unit.entries.is_empty() {
            self.unit.entries.push(Entry::default());
        }
        let last = self.unit.entries.len() - 1;
        &mut self.unit.entries[last]
    }

    pub(super) fn open_scope(&mut self) -> Result<u32> {
        if self.scopes.len() > MAX_SCOPES {
            return self.wrong("blocks inside too many others", "take braces out");
        }
        let id = self.parents.len() as u32;
        self.parents.push(self.scopes.last().map(|(id, _)| *id));
        self.scopes.push((id, HashMap::new()));
        Ok(id)
    }

    pub(super) fn entry(&mut self) -> Result<()> {
        let place = self.place();
        let name = self.name()?.to_string();
        if self.unit.entries.iter().any(|e| e.name == name) {
            return Err(error(
                place,
                format!("kernel `{name}` is there already"),
                "rename one",
            ));
        }
        self.unit.entries.push(Entry {
            name,
            ..Entry::default()
        });
        self.open_scope()?;
        if self.sign(b'(') && !self.sign(b')') {
            self.params()?;
        }
        self.limits()?;
        if !self.sign(b'{') {
            return self.wrong("a kernel's body is missing", "write it in braces");
        }
        self.block()?;
        self.scopes.pop();
        self.resolve_labels()?;
        self.labels.clear();
        self.lists.clear();
        Ok(())
    }

    pub(super) fn params(&mut self) -> Result<()> {
        let mut end = 0u64;
        loop {
            let place = self.place();
            if !self.dot("param") {
                return self.wrong("a parameter begins with .param", "write `.param .u64 name`");
            }
            let header = self.header()?;
            self.declarable(&header)?;
            let mut var = self.variable(&header, Space::Param)?;
            var.offset = end.next_multiple_of(var.align);
            end = var.offset + var.bytes;
            if end > 32764 || var.bytes == 0 {
                let help = "a kernel's parameters have 1 to 32764 bytes";
                return Err(error(place, format!("`{}` does not fit", var.name), help));
            }
            let name = var.name.clone();
            let entry = self.entry_mut();
            entry.params.push(var);
            let symbol = Symbol::Var(VarRef::Param(entry.params.len() as u32 - 1));
            self.declare(place, &name, symbol)?;
            if !self.sign(b',') {
                return self.expect(b')');
            }
        }
    }

    pub(super) fn three(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        for (i, n) in out.iter_mut().enumerate() {
            if i > 0 && !self.sign(b',') {
                break;
            }
            *n = self.integer()?.min(u32::MAX as u64) as u32;
        }
        Ok(out)
    }

    pub(super) fn limits(&mut self) -> Result<()> {
        loop {
            let Word::Dot(name) = *self.word() else {
                return Ok(());
            };
            let place = self.place();
            self.next();
            match name {
                "maxntid" => self.entry_mut().max_threads = Some(self.three()?),
                "reqntid" => self.entry_mut().threads = Some(self.three()?),
                "reqnctapercluster" => self.entry_mut().cluster = Some(self.three()?),
                "maxclusterrank" => {
                    self.entry_mut().max_cluster = Some(self.integer()?.min(1024) as u32);
                }
                "minnctapersm" | "maxnreg" => {
                    self.integer()?;
                }
                "explicitcluster" => {}
                "pragma" => self.skip_to_semicolon(),
                _ => {
                    let help = "known: .maxntid .reqntid .minnctapersm .maxnreg .maxclusterrank \
                                .reqnctapercluster .explicitcluster .pragma";
                    return Err(error(
                        place,
                        format!("`.{name}` is no directive here"),
                        help,
                    ));
                }
            }
        }
    }

    /// Statements up to the closing brace.
    pub(super) fn block(&mut self) -> Result<()> {
        loop {
            let place = self.place();
            match *self.word() {
                Word::Sign(b'}') => {
                    self.next();
                    return Ok(());
                }
                Word::Sign(b'{') => {
                    self.next();
                    self.open_scope()?;
                    self.block()?;
                    self.scopes.pop();
                }
                Word::Sign(b';') => {
                    self.next();
                }
                Word::End => return self.wrong("the body does not end", "add `}`"),
                Word::Dot("reg") => {
                    self.next();
                    self.registers()?;
                }
                Word::Dot("shared" | "local" | "global" | "const") => {
                    self.variables(false, false)?;
                }
                Word::Dot("extern") => {
                    self.next();
                    self.variables(true, false)?;
                }
                Word::Dot("loc" | "file") => self.skip_line(),
                Word::Dot("pragma") => self.skip_to_semicolon(),
                Word::Name(name) if self.tokens[self.at + 1].word == Word::Sign(b':') => {
                    self.next();
                    self.next();
                    self.label(place, name)?;
                }
                Word::Name(_) | Word::Sign(b'@') => self.instruction()?,
                _ => {
                    let what = format!("{} begins no statement", self.shown());
                    return Err(error(place, what, "see the ISA's statements"));
                }
            }
        }
    }

    pub(super) fn scope(&self) -> u32 {
        self.scopes.last().map_or(0, |(id, _)| *id)
    }

    pub(super) fn label(&mut self, place: Place, name: &'a str) -> Result<()> {
        let scope = self.scope();
        let here = self.entry_mut().body.len() as u32;
        if self.dot("branchtargets") {
            let mut names = vec![];
            loop {
                let place = self.place();
                names.push((self.name()?, place));
                if !self.sign(b',') {
                    break;
                }
            }
            self.expect(b';')?;
            let index = self.lists.len() as u32;
            self.lists.insert((scope, name), (index, names));
            return Ok(());
        }
        match self.labels.insert((scope, name), here) {
            None => Ok(()),
            Some(_) => Err(error(
                place,
                format!("label `{name}` is there already"),
                "rename one",
            )),
        }
    }

    pub(super) fn registers(&mut self) -> Result<()> {
        let header = self.header()?;
        self.declarable(&header)?;
        let bytes = matches!(header.ty, Ty::U8 | Ty::S8 | Ty::B8);
        if bytes || header.vector > 1 {
            let help = "registers have 16, 32, 64 or 128 bits, or are predicates";
            return Err(error(header.place, "no register has this type", help));
        }
        loop {
            let place = self.place();
            let name = self.name()?;
            if self.sign(b'<') {
                let count = self.integer()?;
                self.expect(b'>')?;
                let total = self.entry_mut().regs.len() as u64;
                if count.saturating_add(total) > MAX_REGISTERS as u64 {
                    let help = format!("at most {MAX_REGISTERS} a kernel");
                    return Err(error(place, "too many registers", help));
                }
                for i in 0..count {
                    self.register(place, &format!("{name}{i}"), header.ty)?;
                }
            } else {
                self.register(place, name, header.ty)?;
            }
            if !self.sign(b',') {
                return self.expect(b';');
            }
        }
    }

    pub(super) fn register(&mut self, place: Place, name: &str, ty: Ty) -> Result<()> {
        if TAKEN.contains(&name) {
            return Err(error(
                place,
                format!("`{name}` is a special register"),
                "rename yours",
            ));
        }
        let regs = &mut self.entry_mut().regs;
        regs.push(ty);
        let id = regs.len() as u32 - 1;
        self.declare(place, name, Symbol::Reg(id))
    }
}
