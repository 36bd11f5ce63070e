//! Tokenizers and chat templates
