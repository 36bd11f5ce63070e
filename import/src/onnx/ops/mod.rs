//! Handlers of the operators, by family.

pub(crate) mod attention;
pub(crate) mod control;
pub(crate) mod deform;
pub(crate) mod detection;
pub(crate) mod elementwise;
pub(crate) mod eliminate;
pub(crate) mod grid;
pub(crate) mod index;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod microsoft;
pub(crate) mod ml;
pub(crate) mod ngrams;
pub(crate) mod norm;
pub(crate) mod quant;
pub(crate) mod random;
pub(crate) mod recurrence;
pub(crate) mod recurrent;
pub(crate) mod reduce;
pub(crate) mod resize;
pub(crate) mod signal;
pub(crate) mod source;
pub(crate) mod training;
pub(crate) mod unique;
pub(crate) mod window;
