//! Control flow: ops that own regions.

use std::sync::Arc;

/// `if(cond: bool[])`: region 0 if true, else region 1; both take no parameters
/// and yield the same dtypes and ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct If;

/// `loop(trip: i64[], cond: bool[], carried…)`: region 0 takes `(i: i64[],
/// carried…)` and yields `(cond: bool[], carried…, scanned…)`. Runs while `i <
/// trip` and `cond` (a negative trip count: no limit). Results: the carried
/// values, then each scanned value stacked along a new first axis (ONNX Loop).
#[derive(Clone, Debug, PartialEq)]
pub struct Loop {
    /// How many values are carried.
    pub carried: usize,
    /// The size of the stacked axis: minted by the loop, or a known trip count.
    pub symbol: Option<Arc<str>>,
}

/// Calls another function of the module on its caller-bound ports.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function's name, without `@`.
    pub function: Arc<str>,
}

/// A group that one kernel computes: region 0 takes the arguments and yields the
/// results; it is closed (no values from outside).
#[derive(Clone, Debug, PartialEq)]
pub struct Fused;
