//! The operators: one row each. A handler knows the versions at which its
//! operator's meaning changed; adding an operator is adding a row.

use super::cx::{Cx, Out};
use super::ops::{
    attention, control, detection, elementwise as e, grid, index, layout, linear, loss, ngrams,
    norm, quant, quantized, recurrence, recurrent, recurrent::Cell, reduce, resize, signal, source,
    training, window,
};
use kiln_ir::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Converts one node.
pub(crate) type Handler = fn(&mut Cx) -> Out;

/// An operator of a domain.
pub(crate) struct Row {
    /// The domain; ONNX's own is "".
    pub(crate) domain: &'static str,
    /// The operator.
    pub(crate) op: &'static str,
    /// What converts it.
    pub(crate) handler: Handler,
}

macro_rules! rows {
    ($($domain:literal { $($op:literal => $handler:expr,)* })*) => {
        &[$($(Row { domain: $domain, op: $op, handler: $handler },)*)*]
    };
}

/// Every operator that converts.
pub(crate) const ROWS: &[Row] = rows! {
    "" {
        // Elementwise, one argument.
        "Abs" => |c| e::unary(c, UnaryFn::Abs),
        "Acos" => |c| e::unary(c, UnaryFn::Acos),
        "Acosh" => |c| e::unary(c, UnaryFn::Acosh),
        "Asin" => |c| e::unary(c, UnaryFn::Asin),
        "Asinh" => |c| e::unary(c, UnaryFn::Asinh),
        "Atan" => |c| e::unary(c, UnaryFn::Atan),
        "Atanh" => |c| e::unary(c, UnaryFn::Atanh),
        "BitwiseNot" => |c| e::unary(c, UnaryFn::BitNot),
        "Ceil" => |c| e::unary(c, UnaryFn::Ceil),
        "Cos" => |c| e::unary(c, UnaryFn::Cos),
        "Cosh" => |c| e::unary(c, UnaryFn::Cosh),
        "Erf" => |c| e::unary(c, UnaryFn::Erf),
        "Exp" => |c| e::unary(c, UnaryFn::Exp),
        "Floor" => |c| e::unary(c, UnaryFn::Floor),
        "IsNaN" => |c| e::unary(c, UnaryFn::IsNan),
        "Log" => |c| e::unary(c, UnaryFn::Log),
        "Neg" => |c| e::unary(c, UnaryFn::Neg),
        "Not" => |c| e::unary(c, UnaryFn::Not),
        "Reciprocal" => |c| e::unary(c, UnaryFn::Recip),
        "Round" => |c| e::unary(c, UnaryFn::Round),
        "Sigmoid" => |c| e::unary(c, UnaryFn::Sigmoid),
        "Sign" => |c| e::unary(c, UnaryFn::Sign),
        "Sin" => |c| e::unary(c, UnaryFn::Sin),
        "Sinh" => |c| e::unary(c, UnaryFn::Sinh),
        "Sqrt" => |c| e::unary(c, UnaryFn::Sqrt),
        "Tan" => |c| e::unary(c, UnaryFn::Tan),
        "Tanh" => |c| e::unary(c, UnaryFn::Tanh),
        "IsInf" => e::is_inf,
        // Activations.
        "Celu" => e::celu,
        "Elu" => e::elu,
        "Gelu" => e::gelu,
        "HardSigmoid" => e::hard_sigmoid,
        "HardSwish" => e::hard_swish,
        "LeakyRelu" => e::leaky_relu,
        "Mish" => e::mish,
        "PRelu" => e::prelu,
        "Relu" => e::relu,
        "Selu" => e::selu,
        "Shrink" => e::shrink,
        "Softplus" => e::softplus,
        "Softsign" => e::softsign,
        "SwiGLU" => e::swiglu,
        "Swish" => e::swish,
        "ThresholdedRelu" => e::thresholded_relu,
        // Elementwise, several arguments.
        "Add" => |c| e::binary(c, BinaryFn::Add),
        "And" => |c| e::binary(c, BinaryFn::And),
        "BitwiseAnd" => |c| e::binary(c, BinaryFn::And),
        "BitwiseOr" => |c| e::binary(c, BinaryFn::Or),
        "BitwiseXor" => |c| e::binary(c, BinaryFn::Xor),
        "Div" => |c| e::binary(c, BinaryFn::Div),
        "Mul" => |c| e::binary(c, BinaryFn::Mul),
        "Or" => |c| e::binary(c, BinaryFn::Or),
        "Sub" => |c| e::binary(c, BinaryFn::Sub),
        "Xor" => |c| e::binary(c, BinaryFn::Xor),
        "BitShift" => e::bit_shift,
        "Clip" => e::clip,
        "Equal" => |c| e::compare(c, CompareFn::Eq),
        "Greater" => |c| e::compare(c, CompareFn::Gt),
        "GreaterOrEqual" => |c| e::compare(c, CompareFn::Ge),
        "Less" => |c| e::compare(c, CompareFn::Lt),
        "LessOrEqual" => |c| e::compare(c, CompareFn::Le),
        "Max" => |c| e::variadic(c, BinaryFn::Max),
        "Mean" => e::mean,
        "Min" => |c| e::variadic(c, BinaryFn::Min),
        "Mod" => e::modulo,
        "Pow" => e::pow,
        "Sum" => |c| e::variadic(c, BinaryFn::Add),
        "Where" => e::select,
        // Conversion and copies.
        "BitCast" => e::bit_cast,
        "Cast" => e::cast,
        "CastLike" => e::cast_like,
        "Dropout" => e::dropout,
        "Identity" => e::identity,
        // Constants and sizes.
        "Constant" => source::constant,
        "ConstantOfShape" => source::constant_of_shape,
        "EyeLike" => source::eye_like,
        "OneHot" => source::one_hot,
        "Range" => source::range,
        "Shape" => source::shape,
        "Size" => source::size,
        // Layout.
        "CenterCropPad" => layout::center_crop_pad,
        "Concat" => layout::concat,
        "DepthToSpace" => layout::depth_to_space,
        "Expand" => layout::expand,
        "Flatten" => layout::flatten,
        "Pad" => layout::pad,
        "Reshape" => layout::reshape,
        "Slice" => layout::slice,
        "SpaceToDepth" => layout::space_to_depth,
        "Split" => layout::split,
        "Squeeze" => layout::squeeze,
        "Tile" => layout::tile,
        "Transpose" => layout::transpose,
        "Trilu" => layout::trilu,
        "Unsqueeze" => layout::unsqueeze,
        // Indexing.
        "Compress" => index::compress,
        "Gather" => index::gather,
        "GatherElements" => index::gather_elements,
        "GatherND" => index::gather_nd,
        "NonZero" => index::non_zero,
        "ReverseSequence" => index::reverse_sequence,
        "Scatter" => index::scatter_elements,
        "ScatterElements" => index::scatter_elements,
        "ScatterND" => index::scatter_nd,
        "TensorScatter" => index::tensor_scatter,
        "TopK" => index::top_k,
        "ArgMax" => |c| index::arg_reduce(c, true),
        "ArgMin" => |c| index::arg_reduce(c, false),
        // Reductions.
        "CumProd" => |c| reduce::cumulate(c, ReduceFn::Prod),
        "CumSum" => |c| reduce::cumulate(c, ReduceFn::Sum),
        "ReduceL1" => |c| reduce::reduce(c, reduce::Kind::L1),
        "ReduceL2" => |c| reduce::reduce(c, reduce::Kind::L2),
        "ReduceLogSum" => |c| reduce::reduce(c, reduce::Kind::LogSum),
        "ReduceLogSumExp" => |c| reduce::reduce(c, reduce::Kind::LogSumExp),
        "ReduceMax" => |c| reduce::reduce(c, reduce::Kind::Max),
        "ReduceMean" => |c| reduce::reduce(c, reduce::Kind::Mean),
        "ReduceMin" => |c| reduce::reduce(c, reduce::Kind::Min),
        "ReduceProd" => |c| reduce::reduce(c, reduce::Kind::Prod),
        "ReduceSum" => |c| reduce::reduce(c, reduce::Kind::Sum),
        "ReduceSumSquare" => |c| reduce::reduce(c, reduce::Kind::SumSquare),
        "GlobalAveragePool" => |c| reduce::global_pool(c, reduce::Kind::Mean),
        "GlobalMaxPool" => |c| reduce::global_pool(c, reduce::Kind::Max),
        // Convolution and pooling.
        "AveragePool" => window::average_pool,
        "Conv" => window::conv,
        "ConvInteger" => window::conv_integer,
        "ConvTranspose" => window::conv_transpose,
        "GlobalLpPool" => window::global_lp_pool,
        "LRN" => window::lrn,
        "CausalConvWithState" => window::causal_conv,
        "Col2Im" => window::col2im,
        "LpPool" => window::lp_pool,
        "MaxUnpool" => window::max_unpool,
        "MaxPool" => window::max_pool,
        "QLinearConv" => window::qlinear_conv,
        // Resampling.
        "AffineGrid" => grid::affine_grid,
        "GridSample" => grid::grid_sample,
        "Resize" => resize::resize,
        "Upsample" => resize::upsample,
        // Recurrent layers.
        "GRU" => |c| recurrent::recurrent(c, Cell::Gru),
        "LSTM" => |c| recurrent::recurrent(c, Cell::Lstm),
        "RNN" => |c| recurrent::recurrent(c, Cell::Rnn),
        // Signals.
        "BlackmanWindow" => |c| signal::window(c, [0.42, 0.5, 0.08]),
        "DFT" => signal::dft,
        "HammingWindow" => |c| signal::window(c, [25.0 / 46.0, 21.0 / 46.0, 0.0]),
        "HannWindow" => |c| signal::window(c, [0.5, 0.5, 0.0]),
        "STFT" => signal::stft,
        // Detection.
        "NonMaxSuppression" => detection::non_max_suppression,
        "RoiAlign" => detection::roi_align,
        // Counts.
        "TfIdfVectorizer" => ngrams::tf_idf,
        // Losses.
        "NegativeLogLikelihoodLoss" => loss::negative_log_likelihood,
        "SoftmaxCrossEntropyLoss" => loss::softmax_cross_entropy,
        // Linear algebra.
        "Det" => linear::det,
        "Einsum" => linear::einsum,
        "Gemm" => linear::gemm,
        "MatMul" => linear::matmul,
        "MatMulInteger" => linear::matmul_integer,
        "QLinearMatMul" => linear::qlinear_matmul,
        // Norms.
        "BatchNormalization" => norm::batch_norm,
        "GroupNormalization" => norm::group_norm,
        "Hardmax" => norm::hardmax,
        "InstanceNormalization" => norm::instance_norm,
        "LayerNormalization" => norm::layer_norm,
        "LogSoftmax" => |c| norm::softmax(c, true),
        "LpNormalization" => norm::lp_norm,
        "MeanVarianceNormalization" => norm::mean_variance,
        "RMSNormalization" => norm::rms_norm,
        "SimplifiedLayerNormalization" => norm::rms_norm,
        "Softmax" => |c| norm::softmax(c, false),
        // Attention.
        "Attention" => attention::attention,
        "LinearAttention" => recurrence::linear_attention,
        "RotaryEmbedding" => attention::rotary_embedding,
        // Quantization.
        "DequantizeLinear" => quant::dequantize,
        "DynamicQuantizeLinear" => quant::dynamic_quantize,
        "QuantizeLinear" => quant::quantize,
        // Control flow.
        "If" => control::branch,
        "Loop" => control::repeat,
        "Scan" => control::scan,
    }
    "ai.onnx.ml" {
        "ArrayFeatureExtractor" => index::array_feature_extractor,
        "Binarizer" => e::binarizer,
    }
    "ai.onnx.preview" {
        "FlexAttention" => attention::flex_attention,
    }
    "ai.onnx.preview.training" {
        "Adagrad" => training::adagrad,
        "Adam" => training::adam,
        "Momentum" => training::momentum,
    }
    "com.microsoft" {
        "BiasGelu" => e::bias_gelu,
        "DequantizeLinear" => quant::dequantize,
        "FastGelu" => e::fast_gelu,
        "FusedMatMul" => linear::fused_matmul,
        "Gelu" => e::gelu,
        "QGemm" => quantized::gemm,
        "QLinearAdd" => |c| quantized::binary(c, BinaryFn::Add),
        "QLinearGlobalAveragePool" => quantized::global_average_pool,
        "QLinearMul" => |c| quantized::binary(c, BinaryFn::Mul),
        "QLinearSigmoid" => quantized::sigmoid,
        "QuantizeLinear" => quant::quantize,
        "QuickGelu" => e::quick_gelu,
        "RotaryEmbedding" => attention::microsoft_rotary_embedding,
        "SimplifiedLayerNormalization" => norm::rms_norm,
        "SkipLayerNormalization" => norm::skip_layer_norm,
        "SkipSimplifiedLayerNormalization" => norm::skip_rms_norm,
    }
};

static INDEX: LazyLock<HashMap<(&str, &str), &Row>> =
    LazyLock::new(|| ROWS.iter().map(|r| ((r.domain, r.op), r)).collect());

/// The operator's row.
pub(crate) fn find(domain: &str, op: &str) -> Option<&'static Row> {
    INDEX.get(&(domain, op)).copied()
}

/// What a user can do about an operator that is not in the table.
pub(crate) fn suggestion(domain: &str, op: &str) -> &'static str {
    let starts = |names: &[&str]| names.iter().any(|n| op.starts_with(n));
    match domain {
        "" if starts(&[
            "Sequence",
            "SplitToSequence",
            "ConcatFromSequence",
            "Optional",
        ]) =>
        {
            "export the model without sequences and optionals: with fixed numbers of tensors"
        }
        "" if starts(&["String", "Regex", "Tfidf"]) => {
            "strings are not compiled: do this step before the model"
        }
        "" if starts(&["Random", "Bernoulli", "Multinomial"]) => {
            "pass random numbers to the model as an input"
        }
        "" => {
            "export the model without it, or with the operators that it is defined by (a function body)"
        }
        "ai.onnx.ml" => "classical ML operators are not compiled: do this step outside the model",
        "com.microsoft" => {
            "this is an operator of ONNX Runtime's own optimizer: export the model without that optimization"
        }
        _ => "custom operators need a function body in the model",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_has_one_row() {
        assert_eq!(INDEX.len(), ROWS.len());
    }
}
