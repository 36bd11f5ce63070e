//! Attention and what belongs to it.

use crate::Dim;

/// `rope(x: f[b, h, s, d], cos: f[.., s, d/2], sin: f[.., s, d/2])`: rotary
/// position embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Pairs are neighbours (GPT-J), else halves (GPT-NeoX, LLaMA).
    pub interleaved: bool,
    /// Leading features that rotate; the rest pass through. None for all.
    pub rotary_dims: Option<usize>,
}

/// Which keys a query sees.
#[derive(Clone, Debug, PartialEq)]
pub enum MaskKind {
    /// All of them.
    Full,
    /// Key `j` for query `i` if `j <= i + offset` (`offset` = keys before the
    /// first query).
    Causal {
        /// Keys before the first query.
        offset: Dim,
    },
    /// Causal, and at most `window` keys back, but always the first `sinks`
    /// (Xiao et al. 2024; 0 for none).
    Sliding {
        /// Keys before the first query.
        offset: Dim,
        /// Keys seen, the query's own included.
        window: i64,
        /// Leading keys always seen.
        sinks: i64,
    },
    /// Causal, and all of the first `prefix` keys.
    Prefix {
        /// Keys before the first query.
        offset: Dim,
        /// Keys seen by all.
        prefix: Dim,
    },
}

/// `attention(q: f[b, h, s, d], k: f[b, g, t, d], v: f[b, g, t, e], extra…) ->
/// f[b, h, s, e]`, `h` a multiple of `g` (grouped queries): softmax(scale·q·kᵀ +
/// bias)·v over the keys that the mask shows. The optional extra arguments, in
/// order: `bias` (float, broadcasts to [b, h, s, t], added), `keep` (bool,
/// broadcasts likewise; false hides the key), `slopes` (f[h], ALiBi: slope·(j − i
/// − offset)), `lengths` (i64[b]: keys at or beyond are hidden). A query that
/// sees no key gives 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The score's factor.
    pub scale: f64,
    /// Which keys are seen.
    pub mask: MaskKind,
    /// An additive bias follows.
    pub bias: bool,
    /// A bool mask follows.
    pub keep: bool,
    /// ALiBi slopes follow.
    pub slopes: bool,
    /// Key counts follow.
    pub lengths: bool,
}

/// `kv_cache_append(cache: f[b, g, capacity, d], new: f[b, g, s, d], at: i64[])
/// -> f[b, g, capacity, d]`: writes `new` at position `at` of axis 2. Consumes
/// the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCacheAppend;
