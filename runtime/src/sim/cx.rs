//! What decoders ask of an instruction: its modifiers in order, its operands by type, and
//! the slots that these become.

use super::ast::{Mem, Operand, Space, Var, VarRef};
use super::decode::{Cx, Uses};
use super::op::{Addr, Collect, Op};
use super::parse::error;
use super::regs::{Alu, Slot};
use super::report::Class;
use super::special::Special;
use super::types::{Kind, Ty};
use crate::error::{Error, Result};

impl<'a> Cx<'a, '_> {
    /// The error that this instruction cannot be decoded.
    pub fn error(&self, what: impl AsRef<str>, help: impl Into<String>) -> Error {
        error(
            self.i.place,
            format!("`{}`: {}", self.i.text, what.as_ref()),
            help,
        )
    }

    /// The same, as a result.
    pub fn err<T>(&self, what: impl AsRef<str>, help: impl Into<String>) -> Result<T> {
        Err(self.error(what, help))
    }

    /// The instruction needs at least this target and this version of the ISA.
    pub fn need(&self, sm: u32, version: u32) -> Result<()> {
        if self.unit.sm < sm {
            return self.err(
                format!("needs sm_{sm} or later"),
                format!("write `.target sm_{sm}`"),
            );
        }
        if self.unit.version < version {
            let shown = format!("{}.{}", version / 10, version % 10);
            return self.err(
                format!("needs PTX ISA {shown} or later"),
                format!("write `.version {shown}`"),
            );
        }
        Ok(())
    }

    /// The instruction is of sm_90a alone.
    pub fn need_hopper(&self) -> Result<()> {
        if self.unit.sm == 90 && self.unit.specific {
            return Ok(());
        }
        self.err(
            "is an instruction of sm_90a alone",
            "write `.target sm_90a`",
        )
    }

    /// The next modifier.
    pub fn peek(&self) -> Option<&'a str> {
        self.i.mods.get(self.at).copied()
    }

    /// Consumes the next modifier if it is this.
    pub fn accept(&mut self, name: &str) -> bool {
        let found = self.peek() == Some(name);
        self.at += found as usize;
        found
    }

    /// Consumes the next modifier, which must be this.
    pub fn require(&mut self, name: &str) -> Result<()> {
        match self.accept(name) {
            true => Ok(()),
            false => self.err(self.unexpected(&format!(".{name}")), "see the ISA's syntax"),
        }
    }

    fn unexpected(&self, wanted: &str) -> String {
        match self.peek() {
            Some(found) => format!("`.{found}` stands where {wanted} must"),
            None => format!("{wanted} is missing"),
        }
    }

    /// Consumes the next modifier if it is in the table.
    pub fn choice<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let name = self.peek()?;
        let found = table.iter().find(|(n, _)| *n == name)?;
        self.at += 1;
        Some(found.1)
    }

    /// Consumes the next modifier, which must be in the table.
    pub fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Result<T> {
        if let Some(found) = self.choice(table) {
            return Ok(found);
        }
        let names: Vec<String> = table.iter().map(|(n, _)| format!(".{n}")).collect();
        self.err(
            self.unexpected(&format!("one of {}", names.join(" "))),
            "see the ISA's syntax",
        )
    }

    /// Consumes the next modifier, a type of this list.
    pub fn ty(&mut self, allowed: &[Ty]) -> Result<Ty> {
        let table: Vec<(&str, Ty)> = allowed.iter().map(|ty| (ty.name(), *ty)).collect();
        self.one_of(&table)
    }

    /// Consumes an optional `.level::cache_hint`: the policy is operand `at`.
    pub fn cache_hint(&mut self) -> bool {
        self.accept("L2::cache_hint")
    }

    /// Every modifier is consumed.
    pub(super) fn done(&self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(name) => self.err(
                format!("`.{name}` is no modifier here"),
                "take it out, or see the ISA for the order of modifiers",
            ),
        }
    }

    /// Exactly `n` operands.
    pub fn count(&self, n: usize) -> Result<()> {
        self.count_in(n, n)
    }

    /// From `least` to `most` operands.
    pub fn count_in(&self, least: usize, most: usize) -> Result<()> {
        let n = self.i.operands.len();
        if (least..=most).contains(&n) {
            return Ok(());
        }
        self.err(
            format!("{n} operands, where {least} to {most} belong"),
            "see the ISA's syntax",
        )
    }

    /// Operand `i`.
    pub fn operand(&self, i: usize) -> Result<&'_ Operand<'a>> {
        match self.i.operands.get(i) {
            Some(operand) => Ok(operand),
            None => self.err(format!("operand {i} is missing"), "see the ISA's syntax"),
        }
    }

    /// Operand `i` of type `ty`, read.
    pub fn src(&mut self, i: usize, ty: Ty) -> Result<Slot> {
        let operand = self.operand(i)?.clone();
        self.read(&operand, ty, Ty::stands_for)
    }

    /// The operands from `i` on, read.
    pub fn srcs<const N: usize>(&mut self, i: usize, tys: [Ty; N]) -> Result<[Slot; N]> {
        let mut out = [0; N];
        for (n, ty) in tys.into_iter().enumerate() {
            out[n] = self.src(i + n, ty)?;
        }
        Ok(out)
    }

    /// Operand `i`, read, in a register that may be wider.
    pub fn src_wide(&mut self, i: usize, ty: Ty) -> Result<Slot> {
        let operand = self.operand(i)?.clone();
        self.read(&operand, ty, Ty::holds)
    }

    /// Reads an operand.
    pub fn read(&mut self, operand: &Operand, ty: Ty, fits: fn(Ty, Ty) -> bool) -> Result<Slot> {
        match operand {
            Operand::Reg(reg) => {
                self.check_reg(*reg, ty, fits)?;
                let slot = self.build.regs[*reg as usize];
                self.reads.push(slot);
                Ok(slot)
            }
            Operand::Special(name) => self.special(name, ty),
            _ => self.immediate(operand, ty),
        }
    }

    fn check_reg(&self, reg: u32, ty: Ty, fits: fn(Ty, Ty) -> bool) -> Result<()> {
        let found = self.entry.regs[reg as usize];
        if fits(found, ty) {
            return Ok(());
        }
        self.err(
            format!(
                "a register of .{} stands for an operand of .{}",
                found.name(),
                ty.name()
            ),
            "declare the register with the operand's type and size",
        )
    }

    fn special(&mut self, name: &str, ty: Ty) -> Result<Slot> {
        let Some(special) = Special::parse(name) else {
            let help = "of special registers those are known that do not depend on time or place";
            return self.err(
                format!("`{name}` is not declared, and no known register"),
                help,
            );
        };
        let narrow = ty.bits() == 16 && special.ty().bits() == 32;
        if !(special.ty().stands_for(ty) || narrow) {
            let what = format!(
                "`{name}` is .{}, the operand .{}",
                special.ty().name(),
                ty.name()
            );
            return self.err(what, "use an instruction of the register's type");
        }
        Ok(self.special_slot(special))
    }

    /// The slot that holds a special value.
    pub fn special_slot(&mut self, special: Special) -> Slot {
        if let Some(slot) = self.build.specials.get(&special) {
            return *slot;
        }
        let slot = self.build.slot(special.ty().bits() == 64);
        self.build.specials.insert(special, slot);
        self.build.code.specials.push((slot, special));
        slot
    }

    /// The slot that holds a constant.
    pub fn constant(&mut self, bits: u64, wide: bool) -> Slot {
        if let Some(slot) = self.build.consts.get(&(bits, wide)) {
            return *slot;
        }
        let slot = self.build.slot(wide);
        self.build.consts.insert((bits, wide), slot);
        self.build.code.consts.push((slot, bits, wide));
        slot
    }

    fn immediate(&mut self, operand: &Operand, ty: Ty) -> Result<Slot> {
        let bits = ty.bits();
        let value = match (operand, ty.kind()) {
            (Operand::Int(v), Kind::Bits | Kind::Signed | Kind::Unsigned) if bits <= 64 => {
                if *v >= 1i128 << bits || *v < -(1i128 << (bits - 1)) {
                    return self.err(
                        format!("{v} does not fit .{}", ty.name()),
                        "use a wider type",
                    );
                }
                *v as u64 & (u64::MAX >> (64 - bits))
            }
            (Operand::Int(v), Kind::Pred) => (*v != 0) as u64 * u32::MAX as u64,
            (Operand::Single(v), Kind::Bits | Kind::Float) if bits == 32 => *v as u64,
            (Operand::Double(v), Kind::Float) if ty == Ty::F32 => (*v as f32).to_bits() as u64,
            (Operand::Double(v), Kind::Bits | Kind::Float) if bits == 64 => v.to_bits(),
            (Operand::Single(v), Kind::Float) if ty == Ty::F64 => {
                (f32::from_bits(*v) as f64).to_bits()
            }
            _ => {
                let what = format!("this is no operand of .{}", ty.name());
                return self.err(what, "a register or a constant of that type belongs here");
            }
        };
        Ok(self.constant(value, bits == 64))
    }

    /// Operand `i`, a constant that is known now.
    pub fn known(&self, i: usize) -> Result<i64> {
        match self.operand(i)? {
            Operand::Int(v) => Ok(*v as i64),
            _ => self.err(
                format!("operand {i} must be an integer constant"),
                "write a number",
            ),
        }
    }

    /// Operand `i`, one of these constants.
    pub fn known_in(&self, i: usize, allowed: std::ops::RangeInclusive<i64>) -> Result<i64> {
        let value = self.known(i)?;
        if allowed.contains(&value) {
            return Ok(value);
        }
        self.err(
            format!("{value} is not in {allowed:?}"),
            "see the ISA's range of this operand",
        )
    }

    /// Operand `i` of type `ty`, written.
    pub fn dst(&mut self, i: usize, ty: Ty) -> Result<Slot> {
        let operand = self.operand(i)?.clone();
        self.write(&operand, ty, Ty::stands_for)
    }

    /// Operand `i`, written, in a register that may be wider.
    pub fn dst_wide(&mut self, i: usize, ty: Ty) -> Result<(Slot, Ty)> {
        let operand = self.operand(i)?.clone();
        let slot = self.write(&operand, ty, Ty::holds)?;
        Ok((slot, self.declared(&operand).unwrap_or(ty)))
    }

    /// The declared type of a register operand.
    pub fn declared(&self, operand: &Operand) -> Option<Ty> {
        match operand {
            Operand::Reg(reg) => self.entry.regs.get(*reg as usize).copied(),
            _ => None,
        }
    }

    /// Writes an operand; `_` is a slot that nobody reads.
    pub fn write(&mut self, operand: &Operand, ty: Ty, fits: fn(Ty, Ty) -> bool) -> Result<Slot> {
        match operand {
            Operand::Reg(reg) => {
                self.check_reg(*reg, ty, fits)?;
                let slot = self.build.regs[*reg as usize];
                self.writes.push(slot);
                Ok(slot)
            }
            Operand::Sink => Ok(self.build.slot(ty.bits() > 32)),
            _ => self.err("a result goes to a register", "name one"),
        }
    }

    /// Operand `i` as the parts of a vector of `n`, or one operand if `n` is 1.
    pub fn parts(&self, i: usize, n: usize) -> Result<Vec<Operand<'a>>> {
        let parts = match self.operand(i)? {
            Operand::Vector(parts) => parts.clone(),
            single => vec![single.clone()],
        };
        if parts.len() == n {
            return Ok(parts);
        }
        self.err(
            format!("operand {i} has {} parts, where {n} belong", parts.len()),
            "write a vector `{a, b, …}` of that many registers",
        )
    }

    /// Reads `n` parts of operand `i`.
    pub fn src_parts(&mut self, i: usize, n: usize, ty: Ty) -> Result<Box<[Slot]>> {
        let parts = self.parts(i, n)?;
        parts
            .iter()
            .map(|part| self.read(part, ty, Ty::stands_for))
            .collect()
    }

    /// Writes `n` parts of operand `i`.
    pub fn dst_parts(&mut self, i: usize, n: usize, ty: Ty) -> Result<Box<[Slot]>> {
        let parts = self.parts(i, n)?;
        parts
            .iter()
            .map(|part| self.write(part, ty, Ty::stands_for))
            .collect()
    }

    /// Operand `i`, a predicate that may be negated: its slot and whether it is.
    pub fn pred(&mut self, i: usize) -> Result<(Slot, bool)> {
        match self.operand(i)?.clone() {
            Operand::Not(inner) => Ok((self.read(&inner, Ty::Pred, Ty::stands_for)?, true)),
            plain => Ok((self.read(&plain, Ty::Pred, Ty::stands_for)?, false)),
        }
    }

    /// The carry flag.
    pub fn carry(&mut self) -> Slot {
        if let Some(slot) = self.build.carry {
            return slot;
        }
        let slot = self.build.slot(false);
        self.build.carry = Some(slot);
        slot
    }

    /// Operand `i`, an address `[…]` in `space`.
    pub fn addr(&mut self, i: usize, space: Space) -> Result<Addr> {
        let mem = match self.operand(i)? {
            Operand::Mem(mem) if mem.coords.is_empty() => mem.clone(),
            Operand::Mem(_) => return self.err("coordinates do not belong here", "take them out"),
            _ => return self.err(format!("operand {i} must be an address"), "write `[…]`"),
        };
        self.mem(&mem, space)
    }

    /// An address in `space`.
    pub fn mem(&mut self, mem: &Mem, space: Space) -> Result<Addr> {
        match &mem.base {
            Operand::Reg(reg) => {
                let ty = self.entry.regs[*reg as usize];
                let wide = ty.bits() == 64;
                let narrow = ty.bits() == 32
                    && matches!(
                        space,
                        Space::Shared | Space::Local | Space::Param | Space::Const
                    );
                if !(wide || narrow) || matches!(ty.kind(), Kind::Float) {
                    let what = format!("a register of .{} holds no address here", ty.name());
                    return self.err(what, "use .b64; .b32 in shared, local and const memory");
                }
                let slot = self.build.regs[*reg as usize];
                self.reads.push(slot);
                Ok(Addr {
                    slot,
                    wide,
                    offset: mem.offset,
                })
            }
            Operand::Int(v) => {
                let slot = self.constant(*v as u64, true);
                Ok(Addr {
                    slot,
                    wide: true,
                    offset: mem.offset,
                })
            }
            Operand::Var(var, more) => {
                let (found, slot) = self.var_address(*var);
                if found != space {
                    let what = format!(
                        "the variable is in {}, the access to {}",
                        found.name(),
                        space.name()
                    );
                    return self.err(what, "name the variable's space, or use cvta");
                }
                Ok(Addr {
                    slot,
                    wide: true,
                    offset: mem.offset.wrapping_add(*more),
                })
            }
            _ => self.err("this is no address", "a register, a variable or an integer"),
        }
    }

    /// A variable's space, and the slot of its address in it.
    pub fn var_address(&mut self, var: VarRef) -> (Space, Slot) {
        let found: &Var = match var {
            VarRef::Module(i) => &self.unit.vars[i as usize],
            VarRef::Entry(i) => &self.entry.vars[i as usize],
            VarRef::Param(i) => &self.entry.params[i as usize],
        };
        let (space, offset) = (found.space, found.offset);
        match space {
            Space::Global => (space, self.special_slot(Special::GlobalVar(offset as u32))),
            // The CTA's place in its cluster is part of shared addresses.
            Space::Shared => {
                let slot = self.special_slot(Special::SharedVar(offset as u32));
                (space, slot)
            }
            _ => (space, self.constant(offset, true)),
        }
    }

    /// Shared memory is accessed in units of `bytes`.
    pub fn granule(&mut self, bytes: u32) {
        let granule = &mut self.build.code.granule;
        *granule = (*granule).min(bytes);
    }

    /// The uses of the kernel.
    pub fn uses(&mut self) -> &mut Uses {
        &mut self.build.code.uses
    }

    /// All lanes of the warp execute it at once.
    pub fn aligned(&mut self) {
        self.collect = Collect::Aligned;
    }

    /// An arithmetic instruction.
    pub fn alu(&mut self, class: Class, alu: Alu) -> Result<Op> {
        self.class = class;
        Ok(Op::Alu(alu))
    }
}
