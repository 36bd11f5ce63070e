//! Instructions in PTX text, and their operands.

use super::ast::{Instr, Mem, Operand};
use super::lex::Word;
use super::parse::{Parser, Symbol, error};
use super::types::Ty;
use crate::error::Result;

/// Operands inside each other: more than any instruction has.
const MAX_DEPTH: u32 = 8;

impl<'a> Parser<'a> {
    pub(super) fn instruction(&mut self) -> Result<()> {
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

    pub(super) fn operand(&mut self) -> Result<Operand<'a>> {
        let first = self.simple()?;
        if self.sign(b'|') {
            return Ok(Operand::Pair(Box::new((first, self.simple()?))));
        }
        Ok(first)
    }

    pub(super) fn simple(&mut self) -> Result<Operand<'a>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.wrong(
                "an operand inside too many others",
                "see the instruction's form",
            );
        }
        let operand = self.simple_here();
        self.depth -= 1;
        operand
    }

    fn simple_here(&mut self) -> Result<Operand<'a>> {
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

    pub(super) fn named(&mut self, name: &'a str) -> Result<Operand<'a>> {
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
    pub(super) fn offset(&mut self) -> Result<i64> {
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

    pub(super) fn memory(&mut self) -> Result<Operand<'a>> {
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
}
