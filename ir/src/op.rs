//! The op table: what an op is, and the one list of all ops.

use crate::builder::Builder;
use crate::graph::{Graph, Guard, Region, Relation, SymValue, Value};
use crate::module::Globals;
use crate::{Binding, DType, Dim, Tensor, TensorType};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// Why an op does not type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError(pub String);

/// Why an evaluation failed: an index out of range, a division by zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError(pub String);

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TypeError {}
impl std::error::Error for EvalError {}

/// An argument as `infer` sees it.
#[derive(Clone, Copy)]
pub struct Arg<'a> {
    /// Its type.
    pub ty: &'a TensorType,
    /// Its contents as sizes, where known.
    pub known: Option<&'a SymValue>,
}

/// A result as `infer` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Inferred {
    /// Its type.
    pub ty: TensorType,
    /// Its contents as sizes, where they follow from the arguments'.
    pub known: Option<SymValue>,
}

impl From<TensorType> for Inferred {
    fn from(ty: TensorType) -> Inferred {
        Inferred { ty, known: None }
    }
}

/// The types of a function's parameters and results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Of its parameters.
    pub params: Vec<TensorType>,
    /// Of its results.
    pub results: Vec<TensorType>,
}

/// What inference may ask and record.
pub struct InferCx<'a> {
    /// The module's globals.
    pub globals: &'a Globals,
    /// Types of each owned region's parameters and results.
    pub regions: Vec<(Vec<TensorType>, Vec<TensorType>)>,
    /// The types of another function of the module.
    pub callee: &'a dyn Fn(&str) -> Option<Signature>,
    /// Guards recorded so far.
    pub guards: Vec<Guard>,
}

impl InferCx<'_> {
    /// Two extents that must be equal: an error if they never are, a guard if
    /// that is not known. Returns the simpler of the two.
    pub fn require_same(&mut self, a: &Dim, b: &Dim, because: &str) -> Result<Dim, TypeError> {
        match a.same(b) {
            crate::Tri::Yes => {}
            crate::Tri::No => return Err(TypeError(format!("{because}: {a} is not {b}"))),
            crate::Tri::Unknown => {
                self.guards.push(Guard {
                    left: a.clone(),
                    relation: Relation::Eq,
                    right: b.clone(),
                    because: because.to_string(),
                });
            }
        }
        Ok(if b.as_const().is_some() {
            b.clone()
        } else {
            a.clone()
        })
    }
}

/// What running a region or a function gives.
pub type Outcome = Result<Vec<Tensor>, EvalError>;

/// What evaluation may ask.
pub struct EvalCx<'a> {
    /// Values of named sizes; ops that mint sizes add to it.
    pub binding: &'a RefCell<Binding>,
    /// A global's current value.
    pub global: &'a dyn Fn(&str) -> Result<Tensor, EvalError>,
    /// Runs an owned region.
    pub region: &'a dyn Fn(usize, &[Tensor]) -> Outcome,
    /// Types of an owned region's results: what a loop that never runs yields.
    pub region_results: &'a dyn Fn(usize) -> Vec<TensorType>,
    /// Runs another function of the module on the caller's ports.
    pub call: &'a dyn Fn(&str, &[Tensor]) -> Outcome,
}

impl<'a> EvalCx<'a> {
    /// For ops that read no global, own no region and call no function.
    pub fn pure(binding: &'a RefCell<Binding>) -> EvalCx<'a> {
        fn absent<T>(what: &str) -> Result<T, EvalError> {
            Err(EvalError(format!(
                "{what} cannot be evaluated outside a module"
            )))
        }
        EvalCx {
            binding,
            global: &|name| absent(&format!("the global @{name}")),
            region: &|_, _| absent("a region"),
            region_results: &|_| vec![],
            call: &|name, _| absent(&format!("a call of @{name}")),
        }
    }
}

impl EvalCx<'_> {
    /// The value of a size.
    pub fn dim(&self, d: &Dim) -> Result<usize, EvalError> {
        let v = d
            .eval(&self.binding.borrow())
            .map_err(|e| EvalError(e.to_string()))?;
        usize::try_from(v).map_err(|_| EvalError(format!("the size `{d}` is negative ({v})")))
    }

    /// The values of several sizes.
    pub fn dims(&self, dims: &[Dim]) -> Result<Vec<usize>, EvalError> {
        dims.iter().map(|d| self.dim(d)).collect()
    }
}

/// How the axes of an op's arguments relate to its results': what sharding,
/// slicing, tiling and batching ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AxisMap {
    /// Each axis of each argument and result carries a label, or none where it
    /// must stay whole (or has extent 1 and broadcasts). Slicing every axis of
    /// one label alike slices the results alike. A label that only arguments
    /// have is reduced: the results over parts combine by `reduce`.
    Labels {
        /// Labels of each argument's axes.
        args: Vec<Vec<Option<u8>>>,
        /// Labels of each result's axes.
        results: Vec<Vec<Option<u8>>>,
        /// How results over parts of a reduced label combine.
        reduce: Option<crate::ReduceFn>,
    },
    /// No axis can be cut.
    Whole {
        /// Why not.
        because: &'static str,
    },
}

/// The arguments and results of the node that is differentiated.
#[derive(Clone, Copy)]
pub struct Io<'a> {
    /// Arguments.
    pub args: &'a [Value],
    /// Results.
    pub results: &'a [Value],
}

/// The gradients of an op's arguments.
#[derive(Clone, Debug)]
pub enum Grad {
    /// One per argument; `None` for arguments that take no gradient (indices).
    Args(Vec<Option<Value>>),
    /// Zero for every argument.
    Zero {
        /// Why.
        because: &'static str,
    },
    /// Differentiate the op's expansion instead.
    Expand,
    /// Not differentiable here.
    Unsupported {
        /// Why.
        because: &'static str,
    },
}

/// An attribute in the text form.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// `true`, `false`
    Bool(bool),
    /// `3`
    Int(i64),
    /// `1.5`; printed so that it parses back to the same bits
    Float(f64),
    /// An identifier, such as a mode or a dtype
    Name(String),
    /// `"text"`
    Str(String),
    /// `<batch*seq + 1>`
    Dim(Dim),
    /// `[1, -2, <batch>]`: integers and dims alike
    Dims(Vec<Dim>),
    /// `f32[2, 2] {1, 2, 3, 4}`
    Tensor(Tensor),
}

/// Attributes by name, in printing order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub Vec<(String, Attr)>);

impl Attrs {
    /// No attributes.
    pub fn none() -> Attrs {
        Attrs::default()
    }

    /// Puts other sizes in the place of named ones.
    pub(crate) fn substitute(&mut self, with: &dyn Fn(&str) -> Option<Dim>) {
        for (_, attr) in &mut self.0 {
            match attr {
                Attr::Dim(d) => *d = d.substitute(with),
                Attr::Dims(all) => all.iter_mut().for_each(|d| *d = d.substitute(with)),
                Attr::Bool(_)
                | Attr::Int(_)
                | Attr::Float(_)
                | Attr::Name(_)
                | Attr::Str(_)
                | Attr::Tensor(_) => {}
            }
        }
    }

    /// With one more.
    pub fn with(mut self, name: &str, attr: Attr) -> Attrs {
        self.0.push((name.to_string(), attr));
        self
    }

    /// With a list of integers.
    pub fn with_ints(self, name: &str, ints: impl IntoIterator<Item = i64>) -> Attrs {
        self.with(name, Attr::Dims(ints.into_iter().map(Dim::from).collect()))
    }

    /// The attribute.
    pub fn get(&self, name: &str) -> Result<&Attr, TypeError> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, a)| a)
            .ok_or_else(|| TypeError(format!("the attribute `{name}` is missing")))
    }

    fn wrong(name: &str, want: &str) -> TypeError {
        TypeError(format!("the attribute `{name}` is not {want}"))
    }

    /// An integer.
    pub fn int(&self, name: &str) -> Result<i64, TypeError> {
        match self.get(name)? {
            Attr::Int(i) => Ok(*i),
            _ => Err(Self::wrong(name, "an integer")),
        }
    }

    /// An axis or a count.
    pub fn index(&self, name: &str) -> Result<usize, TypeError> {
        usize::try_from(self.int(name)?).map_err(|_| Self::wrong(name, "a count"))
    }

    /// A number.
    pub fn float(&self, name: &str) -> Result<f64, TypeError> {
        match self.get(name)? {
            Attr::Float(f) => Ok(*f),
            Attr::Int(i) => Ok(*i as f64),
            _ => Err(Self::wrong(name, "a number")),
        }
    }

    /// A truth value.
    pub fn bool(&self, name: &str) -> Result<bool, TypeError> {
        match self.get(name)? {
            Attr::Bool(b) => Ok(*b),
            _ => Err(Self::wrong(name, "true or false")),
        }
    }

    /// An identifier.
    pub fn name(&self, name: &str) -> Result<&str, TypeError> {
        match self.get(name)? {
            Attr::Name(s) => Ok(s),
            _ => Err(Self::wrong(name, "a name")),
        }
    }

    /// Quoted text.
    pub fn str(&self, name: &str) -> Result<&str, TypeError> {
        match self.get(name)? {
            Attr::Str(s) => Ok(s),
            _ => Err(Self::wrong(name, "quoted text")),
        }
    }

    /// The quoted name of a size.
    pub fn symbol(&self, name: &str) -> Result<std::sync::Arc<str>, TypeError> {
        let text = self.str(name)?;
        match text.parse::<Dim>().ok().as_ref().and_then(Dim::as_sym) {
            Some(symbol) if **symbol == *text => Ok(symbol.clone()),
            _ => Err(Self::wrong(name, "the name of a size")),
        }
    }

    /// A dtype.
    pub fn dtype(&self, name: &str) -> Result<DType, TypeError> {
        DType::from_name(self.name(name)?).ok_or_else(|| Self::wrong(name, "an element type"))
    }

    /// One size.
    pub fn dim(&self, name: &str) -> Result<Dim, TypeError> {
        match self.get(name)? {
            Attr::Int(i) => Ok((*i).into()),
            Attr::Dim(d) => Ok(d.clone()),
            _ => Err(Self::wrong(name, "a size")),
        }
    }

    /// Sizes.
    pub fn dims(&self, name: &str) -> Result<Vec<Dim>, TypeError> {
        match self.get(name)? {
            Attr::Dims(d) => Ok(d.clone()),
            _ => Err(Self::wrong(name, "a list of sizes")),
        }
    }

    /// Integers.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, TypeError> {
        self.dims(name)?
            .iter()
            .map(|d| {
                d.as_const()
                    .ok_or_else(|| Self::wrong(name, "a list of integers"))
            })
            .collect()
    }

    /// Axes.
    pub fn indices(&self, name: &str) -> Result<Vec<usize>, TypeError> {
        self.ints(name)?
            .into_iter()
            .map(|i| usize::try_from(i).map_err(|_| Self::wrong(name, "a list of axes")))
            .collect()
    }

    /// A tensor literal.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, TypeError> {
        match self.get(name)? {
            Attr::Tensor(t) => Ok(t),
            _ => Err(Self::wrong(name, "a tensor")),
        }
    }
}

/// Everything there is to say about an op. No method has a default: a rule that
/// is not written does not compile.
pub trait OpDef {
    /// The name in the text form.
    fn mnemonic(&self) -> &'static str;
    /// The results' types (and contents as sizes), or why there are none.
    fn infer(&self, cx: &mut InferCx, args: &[Arg]) -> Result<Vec<Inferred>, TypeError>;
    /// How axes of arguments and results relate.
    fn axes(&self, args: &[&TensorType]) -> AxisMap;
    /// The meaning: slow, obvious, f64 accumulation where it matters.
    fn eval(&self, cx: &EvalCx, args: &[&Tensor]) -> Result<Vec<Tensor>, EvalError>;
    /// The gradient, given the gradient `d` of each result.
    fn grad(&self, b: &mut Builder, io: Io<'_>, d: &[Value]) -> Result<Grad, TypeError>;
    /// The attributes, for printing.
    fn attrs(&self) -> Attrs;
    /// Arguments that are consumed: their memory becomes a result's.
    fn donates(&self) -> &'static [usize];
    /// For a composite, the same in other ops; `None` for a primitive.
    fn expand(&self, b: &mut Builder, args: &[Value]) -> Result<Option<Vec<Value>>, TypeError>;
}

/// How an op takes part in kernels: the sections of the op table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A result's element depends on the arguments' elements at its own place.
    Elementwise,
    /// Chooses elements: an index expression over the arguments.
    Move,
    /// A move that costs nothing wherever it stands.
    View,
    /// Reduces axes of one argument.
    Reduction,
    /// A contraction or attention: the heart of its kernel.
    Anchor,
    /// A kernel of its own.
    Kernel,
    /// No kernel: data, sizes and control flow, which the plan does.
    Plan,
    /// Defined by its expansion.
    Composite,
}

macro_rules! ops {
    ($($class:ident $pattern:ident { $($name:literal => $variant:ident($ty:ty),)* })*) => {
        /// Every op there is.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Op { $($($variant($ty),)*)* }

        impl Op {
            /// The op's rules.
            pub fn def(&self) -> &dyn OpDef {
                match self { $($(Op::$variant(op) => op,)*)* }
            }

            /// The section of the table that the op stands in.
            pub fn class(&self) -> Class {
                match self { $($(Op::$variant(_) => Class::$class,)*)* }
            }

            /// The table's names, one a row.
            pub const TABLE: &'static [&'static str] = &[$($($name,)*)*];

            /// The op with this text-form name and these attributes.
            pub fn parse(mnemonic: &str, attrs: &Attrs) -> Result<Op, TypeError> {
                $($(if let Some(op) = <$ty>::parse(mnemonic, attrs) { return op.map(Op::$variant); })*)*
                Err(TypeError(format!("there is no op `{mnemonic}`")))
            }
        }

        $($(impl From<$ty> for Op {
            fn from(op: $ty) -> Op { Op::$variant(op) }
        })*)*

        // A match over ops stays exhaustive without naming what it does not treat
        // one by one: a new row reaches the matches that must know it, and no other.
        $(
            /// A pattern: every op of this section of the table.
            #[macro_export]
            macro_rules! $pattern {
                () => { $($crate::Op::$variant(_))|* };
            }
        )*
    };
}

use crate::ops::*;

// Each struct also has `fn parse(mnemonic: &str, attrs: &Attrs) ->
// Option<Result<Self, TypeError>>`: none if the mnemonic is not its own.
ops! {
    Elementwise any_elementwise {
        "unary" => Unary(elementwise::Unary),
        "binary" => Binary(elementwise::Binary),
        "compare" => Compare(elementwise::Compare),
        "select" => Select(elementwise::Select),
        "cast" => Cast(elementwise::Cast),
    }
    Move any_move {
        "concat" => Concat(layout::Concat),
        "pad" => Pad(layout::Pad),
        "gather" => Gather(index::Gather),
        "gather_elements" => GatherElements(index::GatherElements),
        "gather_nd" => GatherNd(index::GatherNd),
    }
    View any_view {
        "iota" => Iota(source::Iota),
        "broadcast" => Broadcast(layout::Broadcast),
        "transpose" => Transpose(layout::Transpose),
        "slice" => Slice(layout::Slice),
        "unfold" => Unfold(window::Unfold),
    }
    Reduction any_reduction {
        "reduce" => Reduce(reduce::Reduce),
    }
    Anchor any_anchor {
        "matmul" => MatMul(contract::MatMul),
        "packed_matmul" => PackedMatMul(packed::PackedMatMul),
        "block_matmul" => BlockMatMul(block_matmul::BlockMatMul),
        "packed_conv" => PackedConv(packed_conv::PackedConv),
        "attention" => Attention(attention::Attention),
    }
    Kernel any_kernel {
        "arg_reduce" => ArgReduce(reduce::ArgReduce),
        "cumulate" => Cumulate(reduce::Cumulate),
        "scatter_elements" => ScatterElements(index::ScatterElements),
        "scatter_nd" => ScatterNd(index::ScatterNd),
        "dynamic_slice" => DynamicSlice(index::DynamicSlice),
        "dynamic_update_slice" => DynamicUpdateSlice(index::DynamicUpdateSlice),
        "philox" => Philox(source::Philox),
    }
    Plan any_plan {
        "constant" => Constant(source::Constant),
        "global" => Global(source::Global),
        "dims" => Dims(source::Dims),
        "reshape" => Reshape(layout::Reshape),
        "bit_cast" => BitCast(elementwise::BitCast),
        "nonzero" => NonZero(index::NonZero),
        "top_k" => TopK(reduce::TopK),
        "string_map" => StringMap(strings::StringMap),
        "string_split" => StringSplit(strings::StringSplit),
        "bind_dim" => BindDim(index::BindDim),
        "pack" => Pack(contract::Pack),
        "pack_filters" => PackFilters(pack_filters::PackFilters),
        "decode" => Decode(contract::Decode),
        "if" => If(control::If),
        "loop" => Loop(control::Loop),
        "call" => Call(control::Call),
        "fused" => Fused(control::Fused),
    }
    Composite any_composite {
        "softmax" => Softmax(composite::Softmax),
        "gelu" => Gelu(composite::Gelu),
        "silu" => Silu(composite::Silu),
        "layer_norm" => LayerNorm(composite::LayerNorm),
        "rms_norm" => RmsNorm(composite::RmsNorm),
        "rope" => Rope(attention::Rope),
        "kv_cache_append" => KvCacheAppend(attention::KvCacheAppend),
        "cross_entropy" => CrossEntropy(composite::CrossEntropy),
        "embedding" => Embedding(composite::Embedding),
        "adamw" => AdamW(composite::AdamW),
        "dequantize" => Dequantize(composite::Dequantize),
        "quantize" => Quantize(composite::Quantize),
        "conv" => Conv(conv::Conv),
    }
}

/// Types of a region's parameters and results, for [`InferCx::regions`].
pub fn region_types(graph: &Graph, region: &Region) -> (Vec<TensorType>, Vec<TensorType>) {
    let types = |vs: &[Value]| vs.iter().map(|&v| graph.ty(v).clone()).collect();
    (types(&region.params), types(&region.results))
}

/// An error message as a type error.
pub(crate) fn type_err<T>(message: impl Into<String>) -> Result<T, TypeError> {
    Err(TypeError(message.into()))
}

/// A shared name.
pub type Name = Arc<str>;
