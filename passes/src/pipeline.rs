//! The pipelines, and the passes by name.

use crate::manager::Pass;
use crate::{
    block_weights, canonicalize, channels_last, choose_layouts, decompose, eliminate_dead,
    fold_constants, fuse, inline_calls, integer_products, mixed_precision, recognise,
    scaled_weights, share_common, simplify,
};

const INLINE: Pass = Pass {
    name: "inline-calls",
    run: inline_calls::inline_calls,
};
const CANONICALIZE: Pass = Pass {
    name: "canonicalize",
    run: canonicalize::canonicalize,
};
const FOLD: Pass = Pass {
    name: "fold-constants",
    run: fold_constants::fold_constants,
};
const SHARE: Pass = Pass {
    name: "share-common",
    run: share_common::share_common,
};
const DEAD: Pass = Pass {
    name: "eliminate-dead",
    run: eliminate_dead::eliminate_dead,
};
const RECOGNISE: Pass = Pass {
    name: "recognise",
    run: recognise::recognise,
};
const DECOMPOSE: Pass = Pass {
    name: "decompose",
    run: decompose::decompose,
};
const SIMPLIFY: Pass = Pass {
    name: "simplify",
    run: simplify::simplify,
};
const CHANNELS: Pass = Pass {
    name: "channels-last",
    run: channels_last::channels_last,
};
const INTEGER: Pass = Pass {
    name: "integer-products",
    run: integer_products::integer_products,
};
const SCALED: Pass = Pass {
    name: "scaled-weights",
    run: scaled_weights::scaled_weights,
};
const BLOCKS: Pass = Pass {
    name: "block-weights",
    run: block_weights::block_weights,
};
const MIXED: Pass = Pass {
    name: "mixed-precision",
    run: mixed_precision::mixed_precision,
};
const LAYOUTS: Pass = Pass {
    name: "choose-layouts",
    run: choose_layouts::choose_layouts,
};
const FUSE: Pass = Pass {
    name: "fuse",
    run: fuse::fuse,
};

/// Every pass there is.
pub const ALL: &[Pass] = &[
    INLINE,
    CANONICALIZE,
    FOLD,
    SHARE,
    DEAD,
    RECOGNISE,
    SIMPLIFY,
    INTEGER,
    SCALED,
    BLOCKS,
    MIXED,
    DECOMPOSE,
    CHANNELS,
    LAYOUTS,
    FUSE,
];

/// From an imported module to groups of which each is a kernel.
pub const COMPILE: &[Pass] = &[
    // A kernel does not call: every later pass sees whole bodies.
    INLINE,
    // Exporters' no-ops and repeated sub-graphs go first: every later rule then
    // sees one way to say a thing.
    CANONICALIZE,
    FOLD,
    SHARE,
    DEAD,
    // Composites are found while their parts still stand side by side.
    RECOGNISE,
    // After recognition, which knows the forms that exporters write; before
    // packing, after which products have no algebra.
    SIMPLIFY,
    // After it, which would take the sums of a weight's columns for a product to be
    // factored out.
    INTEGER,
    // Weights in bytes that floats are multiplied by, which it left alone.
    SCALED,
    // Those with a scale for each block.
    BLOCKS,
    // What is left of products in f32 is narrowed, if that was asked for.
    MIXED,
    // What became constant by these (merged weights, such sums) is computed now.
    FOLD,
    // Convolutions lie as their kernels read them, and so does what is around.
    CHANNELS,
    // Weights are packed before expansion scatters their users.
    LAYOUTS,
    DECOMPOSE,
    // Expansions repeat literals and leave identities.
    CANONICALIZE,
    FOLD,
    SHARE,
    DEAD,
    FUSE,
];

/// The pass of this name.
pub fn by_name(name: &str) -> Option<Pass> {
    ALL.iter().copied().find(|p| p.name == name)
}
