//! What an epilogue or a score must satisfy before it is emitted: the buffers,
//! parameters and axes that it names exist, and types agree.

use crate::expr::{ExprId, Exprs, Index, Node, Size};
use crate::nest::SpecError;
use kiln_ir::DType;

/// What a family's expressions may refer to.
pub(crate) struct Names<'a> {
    /// The arena.
    pub exprs: &'a Exprs,
    /// Buffers that may be read.
    pub args: &'a [DType],
    /// How many launch parameters there are.
    pub params: u16,
    /// How many axes there are.
    pub axes: usize,
    /// The type of the family's result, accumulator 0.
    pub acc: DType,
}

impl Names<'_> {
    /// Checks what `root` reaches.
    pub fn expression(&self, root: ExprId) -> Result<(), SpecError> {
        if root.0 as usize >= self.exprs.len() {
            return fail(format!("expression {} of {}", root.0, self.exprs.len()));
        }
        for id in self.exprs.reachable(&[root]) {
            match self.exprs.node(id) {
                Node::Param(i) => self.size(Size::Param(*i))?,
                Node::Axis(a) if *a as usize >= self.axes => {
                    return fail(format!("axis {a} of {}", self.axes));
                }
                Node::Acc(i, t) if (*i, *t) != (0, self.acc) => {
                    return fail(format!("accumulator {i} has no {t} value"));
                }
                Node::Temp(i, _) => return fail(format!("temporary {i} outside a nest")),
                Node::Load {
                    arg, dtype, index, ..
                } => {
                    if self.args.get(*arg as usize) != Some(dtype) {
                        return fail(format!("no buffer {arg} holds {dtype}"));
                    }
                    self.index(index)?;
                }
                Node::Const { .. }
                | Node::Axis(_)
                | Node::Acc(..)
                | Node::Unary(..)
                | Node::Binary(..)
                | Node::Compare(..)
                | Node::Select(..)
                | Node::Cast(..) => {}
            }
        }
        Ok(())
    }

    /// Checks an index.
    pub fn index(&self, index: &Index) -> Result<(), SpecError> {
        if index.strides.len() > self.axes {
            return fail(format!(
                "{} strides for {} axes",
                index.strides.len(),
                self.axes
            ));
        }
        self.size(index.offset)?;
        self.sizes(&index.strides)?;
        for g in &index.gathers {
            self.sizes(&[g.stride, g.extent])?;
        }
        Ok(())
    }

    /// Checks sizes.
    pub fn sizes(&self, sizes: &[Size]) -> Result<(), SpecError> {
        sizes.iter().try_for_each(|&s| self.size(s))
    }

    fn size(&self, size: Size) -> Result<(), SpecError> {
        match size {
            Size::Param(i) if i >= self.params => fail(format!("parameter {i} of {}", self.params)),
            _ => Ok(()),
        }
    }
}

fn fail(message: String) -> Result<(), SpecError> {
    Err(SpecError(message))
}
