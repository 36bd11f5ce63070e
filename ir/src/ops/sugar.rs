//! One-op conveniences of the builder.
