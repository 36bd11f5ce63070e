//! Handlers of the operators, by family.

pub(crate) mod attention;
pub(crate) mod control;
pub(crate) mod detection;
pub(crate) mod elementwise;
pub(crate) mod grid;
pub(crate) mod index;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod ngrams;
pub(crate) mod norm;
pub(crate) mod quant;
pub(crate) mod quantized;
pub(crate) mod recurrence;
pub(crate) mod recurrent;
pub(crate) mod reduce;
pub(crate) mod resize;
pub(crate) mod signal;
pub(crate) mod source;
pub(crate) mod training;
pub(crate) mod window;
