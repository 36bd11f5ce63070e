//! What a name of the model stands for. Compiled code has tensors alone:
//! sequences and optionals dissolve while importing, where their structure (how
//! many elements, whether there is something) is known.

use super::cx::Fail;
use crate::diagnostic::code;
use kiln_ir::graph::{RegionId, Value};
use kiln_ir::{Builder, DType, Dim, Graph, Tri};

/// Elements that a stack is taken apart into.
const MAX_ELEMENTS: i64 = 1 << 12;

/// A tensor, a sequence, or nothing: an optional without a value. An optional
/// with a value is that value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Tensor(Value),
    Sequence(Sequence),
    Nothing,
}

/// Tensors of one element type, each with a shape of its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sequence {
    /// The element type of every tensor in it.
    pub(crate) dtype: DType,
    /// What it consists of, in order.
    pub(crate) parts: Vec<Part>,
}

/// A piece of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    /// One element.
    One(Value),
    /// As many elements as the value's first axis is long, all of one shape.
    Stack(Value),
    /// What a sequence that the loop of this body carries held before the step:
    /// nothing can be taken out of it.
    Before(RegionId, usize),
}

impl Item {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Item::Tensor(_) => "a tensor",
            Item::Sequence(_) => "a sequence",
            Item::Nothing => "an optional without a value",
        }
    }

    /// The tensor, where one is wanted.
    pub(crate) fn tensor(&self) -> Result<Value, Fail> {
        match self {
            Item::Tensor(v) => Ok(*v),
            other => Err(Fail::invalid(format!(
                "{} stands where a tensor is wanted",
                other.kind()
            ))),
        }
    }

    /// The tensors that it consists of.
    pub(crate) fn values(&self) -> Vec<Value> {
        match self {
            Item::Tensor(v) => vec![*v],
            Item::Nothing => vec![],
            Item::Sequence(s) => s.parts.iter().filter_map(Part::value).collect(),
        }
    }

    /// The same structure with other tensors, of which it takes as many as
    /// [`Item::values`] gives.
    pub(crate) fn with(&self, values: &mut impl Iterator<Item = Value>) -> Item {
        let mut next = |old: Value| values.next().unwrap_or(old);
        match self {
            Item::Tensor(v) => Item::Tensor(next(*v)),
            Item::Nothing => Item::Nothing,
            Item::Sequence(s) => Item::Sequence(Sequence {
                dtype: s.dtype,
                parts: s
                    .parts
                    .iter()
                    .map(|part| match *part {
                        Part::One(v) => Part::One(next(v)),
                        Part::Stack(v) => Part::Stack(next(v)),
                        before @ Part::Before(..) => before,
                    })
                    .collect(),
            }),
        }
    }

    /// Whether two are alike but for the contents of their tensors; stacks are
    /// alike where they are known to hold as many elements.
    pub(crate) fn like(&self, other: &Item, graph: &Graph) -> bool {
        let as_many = |a: Value, b: Value| match (graph.shape(a), graph.shape(b)) {
            ([a, ..], [b, ..]) => a.same(b) == Tri::Yes,
            _ => false,
        };
        match (self, other) {
            (Item::Tensor(_), Item::Tensor(_)) | (Item::Nothing, Item::Nothing) => true,
            (Item::Sequence(a), Item::Sequence(b)) => {
                let parts = a.parts.iter().zip(&b.parts);
                let alike = |(a, b): (&Part, &Part)| match (a, b) {
                    (Part::One(_), Part::One(_)) => true,
                    (Part::Stack(a), Part::Stack(b)) => as_many(*a, *b),
                    (a, b) => a == b,
                };
                a.dtype == b.dtype && a.parts.len() == b.parts.len() && parts.into_iter().all(alike)
            }
            _ => false,
        }
    }
}

impl Part {
    /// How many elements it holds.
    pub(crate) fn count(&self, graph: &Graph) -> Result<Dim, Fail> {
        match self {
            Part::One(_) => Ok(Dim::ONE),
            Part::Stack(v) => Ok(graph.shape(*v).first().cloned().unwrap_or(Dim::ONE)),
            Part::Before(..) => Err(opaque()),
        }
    }

    fn value(&self) -> Option<Value> {
        match self {
            Part::One(v) | Part::Stack(v) => Some(*v),
            Part::Before(..) => None,
        }
    }
}

impl Sequence {
    /// A sequence of single elements.
    pub(crate) fn of(dtype: DType, elements: Vec<Value>) -> Sequence {
        Sequence {
            dtype,
            parts: elements.into_iter().map(Part::One).collect(),
        }
    }
}

/// Element `i` of a stack, without the stacked axis.
pub(crate) fn element(b: &mut Builder, stack: Value, i: Dim) -> Result<Value, Fail> {
    let shape = b.shape(stack);
    let one = b.slice_axis(stack, 0, i, Dim::ONE)?;
    Ok(b.reshape(one, &shape[1..])?)
}

/// Every element of a sequence; how many must be known.
pub(crate) fn elements(b: &mut Builder, s: &Sequence) -> Result<Vec<Value>, Fail> {
    let mut all = vec![];
    for part in &s.parts {
        let count = part.count(b.graph)?;
        match (part, count.as_const()) {
            (Part::One(v), _) => all.push(*v),
            (Part::Stack(v), Some(n)) if n <= MAX_ELEMENTS => {
                for i in 0..n {
                    all.push(element(b, *v, i.into())?);
                }
            }
            _ => {
                return Err(unknown(format!(
                    "the sequence holds {count} elements, and its tensors are wanted one by one"
                )));
            }
        }
    }
    Ok(all)
}

/// A carried sequence is looked into by the loop that makes it.
pub(crate) fn opaque() -> Fail {
    unknown("a loop of unknown length looks into the sequence that it makes")
}

/// Something about a sequence that must be known and is not.
pub(crate) fn unknown(message: impl Into<String>) -> Fail {
    Fail::new(code::DATA_SHAPE, message).help(
        "sequences dissolve while importing: give the sizes and inputs that decide their lengths and positions with --dim NAME=N and --freeze NAME=FILE.npy, or export the model with constant trip counts and positions",
    )
}
