//! Kiln's typed IR: element types, symbolic dims, the graph, the op table, the
//! builder, the verifier, the text form and the reference interpreter.

pub mod builder;
pub mod dim;
pub mod dtype;
pub mod edit;
pub mod files;
#[doc(hidden)]
pub mod filetest;
pub mod flow;
pub mod graph;
pub mod interp;
pub mod module;
pub mod op;
pub mod ops;
pub mod parse;
pub mod print;
pub mod scalar;
pub mod shrink;
pub mod strings;
pub mod tensor;
pub mod ty;
pub mod verify;

pub use builder::Builder;
pub use dim::{Binding, Dim, DimError, Tri};
pub use dtype::{DType, Kind};
pub use graph::{
    Def, Graph, Guard, Node, NodeId, Origin, Origins, Port, PortKind, Region, RegionId, Relation,
    SymValue, Value, ValueData,
};
pub use module::{ConstSource, Global, GlobalKind, Globals, Module};
pub use op::{
    Attr, Attrs, AxisMap, Class, EvalCx, EvalError, Grad, InferCx, Inferred, Io, Op, OpDef,
    Signature, TypeError,
};
pub use scalar::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
pub use tensor::{Bytes, Owner, Tensor};
pub use ty::{BlockFormat, Encoding, ShardSpec, TensorType};
