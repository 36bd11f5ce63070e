//! PTX text to [`Unit`]: directives, declarations, scopes and labels.

use super::ast::{Operand, Space, Unit, Var, VarRef};
use super::lex::{Place, Token, Word, lex};
use super::types::{Kind, Ty};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The error of PTX text that is not read.
pub fn error(place: Place, what: impl AsRef<str>, help: impl Into<String>) -> Error {
    let Place { line, column } = place;
    Error::input(
        "K0780",
        format!("PTX, line {line}, column {column}: {}", what.as_ref()),
    )
    .help(help)
}

/// Registers of one kernel at most: more is a mistake in a `<N>`.
pub(super) const MAX_REGISTERS: usize = 1 << 20;

/// Reads a module.
pub fn parse(text: &str) -> Result<Unit<'_>> {
    let mut parser = Parser {
        text,
        tokens: lex(text)?,
        at: 0,
        unit: Unit::default(),
        names: HashMap::new(),
        scopes: vec![],
        parents: vec![],
        labels: HashMap::new(),
        lists: HashMap::new(),
        depth: 0,
    };
    parser.module()?;
    Ok(parser.unit)
}

/// A list of branch targets: its number, and the labels.
type Targets<'a> = (u32, Vec<(&'a str, Place)>);

#[derive(Clone, Copy)]
pub(super) enum Symbol {
    Reg(u32),
    Var(VarRef),
}

pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) at: usize,
    pub(super) unit: Unit<'a>,
    /// Names of the module.
    pub(super) names: HashMap<String, Symbol>,
    /// Names of the scopes that are open, and their numbers.
    pub(super) scopes: Vec<(u32, HashMap<String, Symbol>)>,
    /// The scope around each.
    pub(super) parents: Vec<Option<u32>>,
    pub(super) labels: HashMap<(u32, &'a str), u32>,
    /// Lists of branch targets: their numbers, and the labels.
    pub(super) lists: HashMap<(u32, &'a str), Targets<'a>>,
    /// Operands that are open.
    pub(super) depth: u32,
}

/// What a declaration says before its name.
pub(super) struct Header {
    pub(super) align: Option<u64>,
    pub(super) ty: Ty,
    pub(super) vector: u64,
    pub(super) place: Place,
}

impl<'a> Parser<'a> {
    pub(super) fn token(&self) -> &Token<'a> {
        &self.tokens[self.at]
    }

    pub(super) fn word(&self) -> &Word<'a> {
        &self.token().word
    }

    pub(super) fn place(&self) -> Place {
        self.token().place
    }

    pub(super) fn next(&mut self) -> Token<'a> {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(super) fn sign(&mut self, sign: u8) -> bool {
        let found = *self.word() == Word::Sign(sign);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn dot(&mut self, name: &str) -> bool {
        let found = *self.word() == Word::Dot(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn wrong<T>(&self, what: impl AsRef<str>, help: impl Into<String>) -> Result<T> {
        Err(error(self.place(), what, help))
    }

    pub(super) fn expect(&mut self, sign: u8) -> Result<()> {
        match self.sign(sign) {
            true => Ok(()),
            false => self.wrong(
                format!("`{}` is missing before {}", sign as char, self.shown()),
                "see the ISA's syntax of this statement",
            ),
        }
    }

    pub(super) fn shown(&self) -> String {
        let token = self.token();
        match token.word {
            Word::End => "the end of the text".into(),
            _ => format!(
                "`{}`",
                self.text.get(token.span.0..token.span.1).unwrap_or("")
            ),
        }
    }

    pub(super) fn name(&mut self) -> Result<&'a str> {
        match self.next().word {
            Word::Name(name) => Ok(name),
            _ => {
                self.at = self.at.saturating_sub(1);
                self.wrong(
                    format!("a name is missing before {}", self.shown()),
                    "write it",
                )
            }
        }
    }

    pub(super) fn integer(&mut self) -> Result<u64> {
        match self.next().word {
            Word::Int(value) => Ok(value),
            _ => {
                self.at = self.at.saturating_sub(1);
                self.wrong(
                    format!("an integer is missing before {}", self.shown()),
                    "write it",
                )
            }
        }
    }

    pub(super) fn module(&mut self) -> Result<()> {
        self.version()?;
        loop {
            if *self.word() == Word::End {
                return Ok(());
            }
            while self.dot("visible") || self.dot("weak") || self.dot("common") {}
            let external = self.dot("extern");
            let place = self.place();
            match *self.word() {
                Word::Dot("entry") => {
                    self.next();
                    self.entry()?;
                }
                Word::Dot("global" | "const" | "shared") => {
                    self.variables(external, true)?;
                }
                Word::Dot("file" | "loc") => self.skip_line(),
                Word::Dot("pragma") => self.skip_to_semicolon(),
                Word::Dot("func") => {
                    return Err(error(
                        place,
                        "`.func`: calls are not simulated",
                        "write the function's body where it is called",
                    ));
                }
                _ => {
                    return self.wrong(
                        format!("{} begins no declaration", self.shown()),
                        "a module holds .entry, .global, .const and .shared",
                    );
                }
            }
        }
    }

    pub(super) fn version(&mut self) -> Result<()> {
        let first = self.place();
        if !self.dot("version") {
            return self.wrong("a module begins with .version", "write `.version 8.0`");
        }
        let (major, minor) = match self.next().word {
            Word::Double(v) => (v as u32, (v * 10.0).round() as u32 % 10),
            _ => {
                return Err(error(
                    first,
                    ".version takes a number",
                    "write `.version 8.0`",
                ));
            }
        };
        self.unit.version = major * 10 + minor;
        let place = self.place();
        let help = "write `.target sm_90a`, `sm_80` or another `sm_NN`";
        if !self.dot("target") {
            return Err(error(place, ".target must follow .version", help));
        }
        let target = self.name()?;
        let digits = target.strip_prefix("sm_").unwrap_or("");
        self.unit.specific = digits.ends_with('a');
        self.unit.sm = (digits.trim_end_matches('a').parse())
            .map_err(|_| error(place, format!("`{target}` is no target"), help))?;
        let place = self.place();
        if !self.dot("address_size") || self.integer()? != 64 {
            let help = "write `.address_size 64`";
            return Err(error(place, "addresses must have 64 bits", help));
        }
        Ok(())
    }

    pub(super) fn skip_line(&mut self) {
        let line = self.place().line;
        while self.place().line == line && *self.word() != Word::End {
            self.next();
        }
    }

    pub(super) fn skip_to_semicolon(&mut self) {
        while !self.sign(b';') && *self.word() != Word::End {
            self.next();
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<Symbol> {
        let inner = self
            .scopes
            .iter()
            .rev()
            .find_map(|(_, names)| names.get(name));
        inner.or_else(|| self.names.get(name)).copied()
    }

    pub(super) fn declare(&mut self, place: Place, name: &str, symbol: Symbol) -> Result<()> {
        let names = match self.scopes.last_mut() {
            Some((_, names)) => names,
            None => &mut self.names,
        };
        match names.insert(name.into(), symbol) {
            None => Ok(()),
            Some(_) => Err(error(
                place,
                format!("`{name}` is declared twice here"),
                "rename one",
            )),
        }
    }

    /// `.align N .v2 .type`
    pub(super) fn header(&mut self) -> Result<Header> {
        let place = self.place();
        let mut header = Header {
            align: None,
            ty: Ty::Pred,
            vector: 1,
            place,
        };
        let mut typed = false;
        loop {
            match *self.word() {
                Word::Dot("align") => {
                    self.next();
                    let align = self.integer()?;
                    if !align.is_power_of_two() || align > 1 << 16 {
                        return self.wrong(
                            "an alignment is a power of two up to 2^16",
                            "write 1, 2, 4 …",
                        );
                    }
                    header.align = Some(align);
                }
                Word::Dot("v2") => {
                    self.next();
                    header.vector = 2;
                }
                Word::Dot("v4") => {
                    self.next();
                    header.vector = 4;
                }
                Word::Dot(name) if !typed && Ty::parse(name).is_some() => {
                    self.next();
                    header.ty = Ty::parse(name).unwrap_or(Ty::Pred);
                    typed = true;
                }
                // `.param .u64 .ptr .global .align 16 name`: says what is pointed to.
                Word::Dot("ptr" | "global" | "shared" | "const" | "local") if typed => {
                    let pointer = self.dot("ptr");
                    self.next_if(!pointer);
                    if self.dot("align") {
                        self.integer()?;
                    }
                }
                _ if typed => return Ok(header),
                _ => return self.wrong("a declaration's type is missing", "write .b32, .f32 …"),
            }
        }
    }

    pub(super) fn next_if(&mut self, yes: bool) {
        if yes {
            self.next();
        }
    }

    /// The declared register or memory types only: alternate formats have none.
    pub(super) fn declarable(&self, header: &Header) -> Result<()> {
        let ty = header.ty;
        if ty.kind() == Kind::Alternate {
            let (what, help) = (
                format!(".{} is not a type of variables", ty.name()),
                "use .bN",
            );
            return Err(error(header.place, what, help));
        }
        Ok(())
    }

    /// `.shared .align 16 .b8 a[256], b[4] = {1, 2};` with the current word the space.
    pub(super) fn variables(&mut self, external: bool, module: bool) -> Result<()> {
        let space = match self.next().word {
            Word::Dot("global") => Space::Global,
            Word::Dot("const") => Space::Const,
            Word::Dot("shared") => Space::Shared,
            _ => Space::Local,
        };
        let header = self.header()?;
        self.declarable(&header)?;
        loop {
            let place = self.place();
            let mut var = self.variable(&header, space)?;
            if var.bytes == 0 && !(external && space == Space::Shared) {
                let help = "give its number of elements; only `.extern .shared x[]` has none";
                return Err(error(place, format!("`{}` has no size", var.name), help));
            }
            if self.sign(b'=') {
                if !matches!(space, Space::Global | Space::Const) {
                    let help = "only .global and .const variables have initial values";
                    return Err(error(
                        place,
                        format!("`{}` cannot have a value", var.name),
                        help,
                    ));
                }
                let init = self.initialiser(header.ty)?;
                if init.len() as u64 > var.bytes {
                    let help = "declare a larger variable";
                    return Err(error(
                        place,
                        format!("too many values for `{}`", var.name),
                        help,
                    ));
                }
                var.init = Some(init);
            }
            let name = var.name.clone();
            let symbol = if module {
                self.unit.vars.push(var);
                VarRef::Module(self.unit.vars.len() as u32 - 1)
            } else {
                let entry = self.entry_mut();
                entry.vars.push(var);
                VarRef::Entry(entry.vars.len() as u32 - 1)
            };
            self.declare(place, &name, Symbol::Var(symbol))?;
            if !self.sign(b',') {
                return self.expect(b';');
            }
        }
    }

    /// A name with its bounds.
    pub(super) fn variable(&mut self, header: &Header, space: Space) -> Result<Var> {
        let place = self.place();
        let name = self.name()?.to_string();
        let element = header.ty.bytes() as u64 * header.vector;
        let mut bytes = Some(element);
        while self.sign(b'[') {
            let count = if self.sign(b']') {
                0
            } else {
                let count = self.integer()?;
                self.expect(b']')?;
                count
            };
            bytes = bytes.and_then(|b| b.checked_mul(count));
        }
        let bytes = bytes.filter(|b| *b <= 1 << 26);
        let Some(bytes) = bytes else {
            return Err(error(
                place,
                format!("`{name}` is too large"),
                "declare fewer elements",
            ));
        };
        let align = header.align.unwrap_or(element);
        Ok(Var {
            name,
            space,
            align,
            bytes,
            init: None,
            offset: 0,
        })
    }

    pub(super) fn initialiser(&mut self, ty: Ty) -> Result<Vec<u8>> {
        let mut out = vec![];
        let braces = self.sign(b'{');
        loop {
            let place = self.place();
            let negative = self.sign(b'-');
            let bits = match (self.next().word, ty) {
                (Word::Int(v), Ty::F32) if !negative => (v as f32).to_bits() as u64,
                (Word::Int(v), _) if negative => v.wrapping_neg(),
                (Word::Int(v), _) => v,
                (Word::Single(v), Ty::F32) => (v ^ (negative as u32) << 31) as u64,
                (Word::Double(v), Ty::F32) => {
                    (if negative { -v } else { v } as f32).to_bits() as u64
                }
                (Word::Double(v), Ty::F64) => (if negative { -v } else { v }).to_bits(),
                _ => {
                    let help = "write numbers of the variable's type";
                    return Err(error(place, "this is no initial value", help));
                }
            };
            out.extend_from_slice(&bits.to_le_bytes()[..ty.bytes() as usize]);
            if !braces || !self.sign(b',') {
                break;
            }
        }
        if braces {
            self.expect(b'}')?;
        }
        Ok(out)
    }

    pub(super) fn look_up<T: Copy>(
        &self,
        mut scope: u32,
        get: impl Fn(u32) -> Option<T>,
    ) -> Option<T> {
        loop {
            if let Some(found) = get(scope) {
                return Some(found);
            }
            scope = self.parents[scope as usize]?;
        }
    }

    pub(super) fn resolve_labels(&mut self) -> Result<()> {
        let mut body = std::mem::take(&mut self.entry_mut().body);
        let mut lists = vec![vec![]; self.lists.len()];
        for ((scope, _), (index, names)) in &self.lists {
            for (name, place) in names {
                let target = self.look_up(*scope, |s| self.labels.get(&(s, *name)).copied());
                let what = || error(*place, format!("no label `{name}`"), "write it");
                lists[*index as usize].push(target.ok_or_else(what)?);
            }
        }
        for instr in &mut body {
            let (scope, place) = (instr.scope, instr.place);
            for operand in &mut instr.operands {
                let Operand::Name(name) = *operand else {
                    continue;
                };
                let label = self.look_up(scope, |s| self.labels.get(&(s, name)).copied());
                let list = self.look_up(scope, |s| self.lists.get(&(s, name)).map(|l| l.0));
                *operand = match (label, list) {
                    (Some(at), _) => Operand::Label(at),
                    (None, Some(list)) => Operand::Targets(list),
                    (None, None) => {
                        let what = format!("`{name}` is not declared");
                        return Err(error(place, what, "declare it before its use"));
                    }
                };
            }
        }
        let entry = self.entry_mut();
        entry.body = body;
        entry.targets = lists;
        Ok(())
    }
}
