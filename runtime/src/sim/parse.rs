//! PTX text to [`Unit`]: directives, declarations, scopes and labels.

use super::ast::{Entry, Instr, Mem, Operand, Space, Unit, Var, VarRef};
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
const MAX_REGISTERS: usize = 1 << 20;

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
    };
    parser.module()?;
    Ok(parser.unit)
}

#[derive(Clone, Copy)]
enum Symbol {
    Reg(u32),
    Var(VarRef),
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
    unit: Unit<'a>,
    /// Names of the module.
    names: HashMap<String, Symbol>,
    /// Names of the scopes that are open, and their numbers.
    scopes: Vec<(u32, HashMap<String, Symbol>)>,
    /// The scope around each.
    parents: Vec<Option<u32>>,
    labels: HashMap<(u32, &'a str), u32>,
    lists: HashMap<(u32, &'a str), (u32, Vec<(&'a str, Place)>)>,
}

/// What a declaration says before its name.
struct Header {
    align: Option<u64>,
    ty: Ty,
    vector: u64,
    place: Place,
}

impl<'a> Parser<'a> {
    fn token(&self) -> &Token<'a> {
        &self.tokens[self.at]
    }

    fn word(&self) -> &Word<'a> {
        &self.token().word
    }

    fn place(&self) -> Place {
        self.token().place
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn sign(&mut self, sign: u8) -> bool {
        let found = *self.word() == Word::Sign(sign);
        if found {
            self.next();
        }
        found
    }

    fn dot(&mut self, name: &str) -> bool {
        let found = *self.word() == Word::Dot(name);
        if found {
            self.next();
        }
        found
    }

    fn wrong<T>(&self, what: impl AsRef<str>, help: impl Into<String>) -> Result<T> {
        Err(error(self.place(), what, help))
    }

    fn expect(&mut self, sign: u8) -> Result<()> {
        match self.sign(sign) {
            true => Ok(()),
            false => self.wrong(
                format!("`{}` is missing before {}", sign as char, self.shown()),
                "see the ISA's syntax of this statement",
            ),
        }
    }

    fn shown(&self) -> String {
        let token = self.token();
        match token.word {
            Word::End => "the end of the text".into(),
            _ => format!(
                "`{}`",
                self.text.get(token.span.0..token.span.1).unwrap_or("")
            ),
        }
    }

    fn name(&mut self) -> Result<&'a str> {
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

    fn integer(&mut self) -> Result<u64> {
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

    fn module(&mut self) -> Result<()> {
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

    fn version(&mut self) -> Result<()> {
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

    fn skip_line(&mut self) {
        let line = self.place().line;
        while self.place().line == line && *self.word() != Word::End {
            self.next();
        }
    }

    fn skip_to_semicolon(&mut self) {
        while !self.sign(b';') && *self.word() != Word::End {
            self.next();
        }
    }

    fn find(&self, name: &str) -> Option<Symbol> {
        let inner = self
            .scopes
            .iter()
            .rev()
            .find_map(|(_, names)| names.get(name));
        inner.or_else(|| self.names.get(name)).copied()
    }

    fn declare(&mut self, place: Place, name: &str, symbol: Symbol) -> Result<()> {
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
    fn header(&mut self) -> Result<Header> {
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
                    if !align.is_power_of_two() {
                        return self.wrong("an alignment is a power of two", "write 1, 2, 4 …");
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

    fn next_if(&mut self, yes: bool) {
        if yes {
            self.next();
        }
    }

    /// The declared register or memory types only: alternate formats have none.
    fn declarable(&self, header: &Header) -> Result<()> {
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
    fn variables(&mut self, external: bool, module: bool) -> Result<()> {
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
    fn variable(&mut self, header: &Header, space: Space) -> Result<Var> {
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
        let bytes = bytes.filter(|b| *b < 1 << 40);
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

    fn initialiser(&mut self, ty: Ty) -> Result<Vec<u8>> {
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

    fn entry_mut(&mut self) -> &mut Entry<'a> {
        if self.unit.entries.is_empty() {
            self.unit.entries.push(Entry::default());
        }
        let last = self.unit.entries.len() - 1;
        &mut self.unit.entries[last]
    }

    fn open_scope(&mut self) -> u32 {
        let id = self.parents.len() as u32;
        self.parents.push(self.scopes.last().map(|(id, _)| *id));
        self.scopes.push((id, HashMap::new()));
        id
    }

    fn entry(&mut self) -> Result<()> {
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
        self.open_scope();
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

    fn params(&mut self) -> Result<()> {
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

    fn three(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        for (i, n) in out.iter_mut().enumerate() {
            if i > 0 && !self.sign(b',') {
                break;
            }
            *n = self.integer()?.min(u32::MAX as u64) as u32;
        }
        Ok(out)
    }

    fn limits(&mut self) -> Result<()> {
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
    fn block(&mut self) -> Result<()> {
        loop {
            let place = self.place();
            match *self.word() {
                Word::Sign(b'}') => {
                    self.next();
                    return Ok(());
                }
                Word::Sign(b'{') => {
                    self.next();
                    self.open_scope();
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

    fn scope(&self) -> u32 {
        self.scopes.last().map_or(0, |(id, _)| *id)
    }

    fn label(&mut self, place: Place, name: &'a str) -> Result<()> {
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

    fn registers(&mut self) -> Result<()> {
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

    fn register(&mut self, place: Place, name: &str, ty: Ty) -> Result<()> {
        let regs = &mut self.entry_mut().regs;
        regs.push(ty);
        let id = regs.len() as u32 - 1;
        self.declare(place, name, Symbol::Reg(id))
    }

    fn instruction(&mut self) -> Result<()> {
        let start = self.token().span.0;
        let mut guard = None;
        if self.sign(b'@') {
            let negated = self.sign(b'!');
            let place = self.place();
            let name = self.name()?;
            match self.find(name) {
                Some(Symbol::Reg(reg)) if self.entry_mut().regs[reg as usize] == Ty::Pred => {
                    guard = Some((reg, negated));
                }
                _ => {
                    let what = format!("`{name}` is no predicate");
                    return Err(error(place, what, "declare it with `.reg .pred`"));
                }
            }
        }
        let place = self.place();
        let name = self.name()?;
        let mut mods = vec![];
        while let Word::Dot(word) = *self.word() {
            mods.push(word);
            self.next();
        }
        let mut operands = vec![];
        while *self.word() != Word::Sign(b';') {
            operands.push(self.operand()?);
            if !self.sign(b',') {
                break;
            }
        }
        let end = self.token().span.0;
        self.expect(b';')?;
        let scope = self.scope();
        let text = self.text.get(start..end).unwrap_or(name).trim_end();
        let instr = Instr {
            guard,
            name,
            mods,
            operands,
            place,
            scope,
            text,
        };
        self.entry_mut().body.push(instr);
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        let first = self.simple()?;
        if self.sign(b'|') {
            return Ok(Operand::Pair(Box::new((first, self.simple()?))));
        }
        Ok(first)
    }

    fn simple(&mut self) -> Result<Operand<'a>> {
        let place = self.place();
        match self.next().word {
            Word::Sign(b'{') => {
                let mut parts = vec![];
                loop {
                    parts.push(self.simple()?);
                    if !self.sign(b',') {
                        break;
                    }
                }
                self.expect(b'}')?;
                Ok(Operand::Vector(parts))
            }
            Word::Sign(b'[') => self.memory(),
            Word::Sign(b'!') => Ok(Operand::Not(Box::new(self.simple()?))),
            Word::Sign(b'-') => match self.next().word {
                Word::Int(v) => Ok(Operand::Int(-(v as i128))),
                Word::Single(v) => Ok(Operand::Single(v ^ 1 << 31)),
                Word::Double(v) => Ok(Operand::Double(-v)),
                _ => Err(error(place, "a number must follow `-`", "write it")),
            },
            Word::Int(v) => Ok(Operand::Int(v as i128)),
            Word::Single(v) => Ok(Operand::Single(v)),
            Word::Double(v) => Ok(Operand::Double(v)),
            Word::Name("_") => Ok(Operand::Sink),
            Word::Name(name) => self.named(name),
            _ => {
                self.at -= 1;
                self.wrong(
                    format!("{} is no operand", self.shown()),
                    "see the instruction's form",
                )
            }
        }
    }

    fn named(&mut self, name: &'a str) -> Result<Operand<'a>> {
        match self.find(name) {
            Some(Symbol::Reg(reg)) => return Ok(Operand::Reg(reg)),
            Some(Symbol::Var(var)) => {
                let offset = self.offset()?;
                return Ok(Operand::Var(var, offset));
            }
            None => {}
        }
        if name.starts_with('%') {
            let dotted = match (self.tokens[self.at - 1].touches(self.token()), self.word()) {
                (true, Word::Dot(part @ ("x" | "y" | "z" | "w"))) => Some(*part),
                _ => None,
            };
            self.next_if(dotted.is_some());
            let full = dotted.map_or(name.to_string(), |part| format!("{name}.{part}"));
            return Ok(Operand::Special(full));
        }
        if name.starts_with("WARP_SZ") {
            return Ok(Operand::Int(32));
        }
        Ok(Operand::Name(name))
    }

    /// `+4`, `-4`, `+-4`
    fn offset(&mut self) -> Result<i64> {
        let mut total = 0i64;
        loop {
            let plus = self.sign(b'+');
            let minus = self.sign(b'-');
            if !plus && !minus {
                return Ok(total);
            }
            let value = self.integer()? as i64;
            total = total.wrapping_add(if minus { value.wrapping_neg() } else { value });
        }
    }

    fn memory(&mut self) -> Result<Operand<'a>> {
        let place = self.place();
        let base = self.simple()?;
        if !matches!(base, Operand::Reg(_) | Operand::Var(..) | Operand::Int(_)) {
            let help = "an address is a register, a variable or an integer, and an offset";
            return Err(error(place, "this is no address", help));
        }
        let offset = self.offset()?;
        let mut coords = vec![];
        if self.sign(b',') {
            match self.simple()? {
                Operand::Vector(parts) => coords = parts,
                _ => {
                    return Err(error(
                        place,
                        "coordinates are missing",
                        "write them in braces",
                    ));
                }
            }
        }
        self.expect(b']')?;
        Ok(Operand::Mem(Box::new(Mem {
            base,
            offset,
            coords,
        })))
    }

    fn look_up<T: Copy>(&self, mut scope: u32, get: impl Fn(u32) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = get(scope) {
                return Some(found);
            }
            scope = self.parents[scope as usize]?;
        }
    }

    fn resolve_labels(&mut self) -> Result<()> {
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
