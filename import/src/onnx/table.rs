//! The operators: one row each. A handler knows the versions at which its
//! operator's meaning changed; adding an operator is adding a row.

use super::cx::{Cx, Fail, Items, Out};
use super::ops::{
    attention, control, deform, detection, elementwise as e, eliminate, grid, index, layout,
    linear, loops, loss, microsoft as ms, ml, ngrams, norm, quant, random, recurrence, recurrent,
    recurrent::Cell, reduce, resize, sequence, signal, source, training, unique, window,
};
use kiln_ir::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Converts one node.
pub(crate) enum Convert {
    /// Of tensors, and of nothing else.
    Tensors(fn(&mut Cx) -> Out),
    /// Of tensors, sequences and optionals.
    Any(fn(&mut Cx) -> Items),
}

/// An operator of a domain.
pub(crate) struct Row {
    /// The domain; ONNX's own is "".
    pub(crate) domain: &'static str,
    /// The operator.
    pub(crate) op: &'static str,
    /// What converts it.
    pub(crate) convert: Convert,
}

macro_rules! rows {
    ($convert:ident: $($domain:literal { $($op:literal => $handler:expr,)* })*) => {
        &[$($(Row { domain: $domain, op: $op, convert: Convert::$convert($handler) },)*)*]
    };
}

/// Operators of tensors.
const TENSORS: &[Row] = rows! { Tensors:
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
        "Unique" => unique::unique,
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
        "DeformConv" => deform::deform_conv,
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
        "MelWeightMatrix" => signal::mel_weights,
        "STFT" => signal::stft,
        // Random numbers.
        "Bernoulli" => random::bernoulli,
        "Multinomial" => random::multinomial,
        "RandomNormal" => |c| random::random_normal(c, false),
        "RandomNormalLike" => |c| random::random_normal(c, true),
        "RandomUniform" => |c| random::random_uniform(c, false),
        "RandomUniformLike" => |c| random::random_uniform(c, true),
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
    }
    "ai.onnx.ml" {
        "ArrayFeatureExtractor" => index::array_feature_extractor,
        "Binarizer" => e::binarizer,
        "FeatureVectorizer" => ml::features::vectorizer,
        "Imputer" => ml::features::imputer,
        "LabelEncoder" => ml::labels::label_encoder,
        "LinearClassifier" => ml::linear::classifier,
        "LinearRegressor" => ml::linear::regressor,
        "Normalizer" => ml::features::normalizer,
        "OneHotEncoder" => ml::features::one_hot,
        "SVMClassifier" => ml::svm::classifier,
        "SVMRegressor" => ml::svm::regressor,
        "Scaler" => ml::features::scaler,
        "TreeEnsemble" => ml::trees::ensemble,
        "TreeEnsembleClassifier" => ml::trees::classifier,
        "TreeEnsembleRegressor" => ml::trees::regressor,
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
        // Elementwise and layout.
        "BiasGelu" => e::bias_gelu,
        "GatherND" => |c| as_of(c, 12, index::gather_nd),
        "GridSample" => |c| as_of(c, 16, grid::grid_sample),
        "BiasSplitGelu" => ms::elementwise::bias_split_gelu,
        "ExpandDims" => ms::norm::expand_dims,
        "FastGelu" => e::fast_gelu,
        "Gelu" => e::gelu,
        "Pad" => |c| as_of(c, 18, layout::pad),
        "QuickGelu" => e::quick_gelu,
        "Range" => source::range_from,
        "Trilu" => layout::trilu,
        "Unique" => unique::in_order,
        // Attention.
        "Attention" => ms::attention::attention,
        "CausalConvWithState" => |c| {
            let usual = [("channels_last", 0), ("dilation", 1), ("ndim", 1), ("state_window", 0)];
            only(c, &usual, window::causal_conv)
        },
        "GroupQueryAttention" => ms::grouped::grouped,
        "LinearAttention" => |c| only(c, &[("state_window", 0)], recurrence::linear_attention),
        "MultiHeadAttention" => ms::attention::multi_head,
        "QAttention" => ms::attention::quantized,
        // Products and convolutions.
        "DynamicQuantizeMatMul" => ms::product::dynamic_quantize_matmul,
        "ConvTransposeWithDynamicPads" => window::conv_transpose_padded,
        "FusedConv" => ms::fused::conv,
        "FusedGemm" => ms::fused::gemm,
        "FusedMatMul" => linear::fused_matmul,
        "MatMulIntegerToFloat" => ms::product::matmul_integer_to_float,
        "MatMulNBits" => ms::bits::matmul_n_bits,
        "QGemm" => ms::product::qgemm,
        "Inverse" => eliminate::inverse,
        "TransposeMatMul" => linear::fused_matmul,
        // Quantized values.
        "DequantizeLinear" => quant::dequantize,
        "GatherBlockQuantized" => ms::bits::gather_block_quantized,
        "NhwcMaxPool" => ms::qlinear::max_pool,
        "QLinearAdd" => ms::qlinear::add,
        "QLinearAveragePool" => ms::qlinear::average_pool,
        "QLinearConcat" => ms::qlinear::concat,
        "QLinearConv" => ms::qlinear::conv,
        "QLinearGlobalAveragePool" => ms::qlinear::global_average_pool,
        "QLinearLeakyRelu" => ms::qlinear::leaky_relu,
        "QLinearMul" => ms::qlinear::mul,
        "QLinearReduceMean" => ms::qlinear::reduce_mean,
        "QLinearSigmoid" => ms::qlinear::sigmoid,
        "QLinearSoftmax" => ms::qlinear::softmax,
        "QLinearWhere" => ms::qlinear::select,
        "QuantizeLinear" => quant::quantize,
        // Norms.
        "EmbedLayerNormalization" => ms::norm::embed,
        "RotaryEmbedding" => attention::microsoft_rotary_embedding,
        "SimplifiedLayerNormalization" => norm::rms_norm,
        "SkipLayerNormalization" => norm::skip_layer_norm,
        "SkipSimplifiedLayerNormalization" => norm::skip_rms_norm,
    }
};

/// Converts a node by the rules of ONNX's own operator at this opset.
fn as_of(cx: &mut Cx, opset: i64, handler: fn(&mut Cx) -> Out) -> Out {
    cx.opset = opset;
    handler(cx)
}

/// Converts a node whose further attributes have their defaults.
fn only(cx: &mut Cx, usual: &[(&str, i64)], handler: fn(&mut Cx) -> Out) -> Out {
    for &(name, value) in usual {
        let given = cx.int(name, value)?;
        if given != value {
            return Err(Fail::form(format!("`{name}` of {given} is not supported")));
        }
    }
    handler(cx)
}

/// Operators that take or give sequences and optionals too.
const STRUCTURES: &[Row] = rows! { Any:
    "" {
        "ConcatFromSequence" => sequence::concat_from_sequence,
        "Identity" => sequence::identity,
        "If" => control::branch,
        "Loop" => loops::repeat,
        "Optional" => sequence::optional,
        "OptionalGetElement" => sequence::get_element,
        "OptionalHasElement" => sequence::has_element,
        "Scan" => control::scan,
        "SequenceAt" => sequence::at,
        "SequenceConstruct" => sequence::construct,
        "SequenceEmpty" => sequence::empty,
        "SequenceErase" => sequence::erase,
        "SequenceInsert" => sequence::insert,
        "SequenceLength" => sequence::length,
        "SequenceMap" => sequence::map,
        "SplitToSequence" => sequence::split_to_sequence,
    }
};

/// Every operator that converts.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    TENSORS.iter().chain(STRUCTURES)
}

static INDEX: LazyLock<HashMap<(&str, &str), &Row>> =
    LazyLock::new(|| rows().map(|r| ((r.domain, r.op), r)).collect());

/// The operator's row.
pub(crate) fn find(domain: &str, op: &str) -> Option<&'static Row> {
    INDEX.get(&(domain, op)).copied()
}

/// What a user can do about an operator that is not in the table.
pub(crate) fn suggestion(domain: &str, op: &str) -> &'static str {
    let starts = |names: &[&str]| names.iter().any(|n| op.starts_with(n));
    match domain {
        "" if starts(&["String", "Regex", "Tfidf"]) => {
            "strings are not compiled: do this step before the model"
        }
        "" => {
            "export the model without it, or with the operators that it is defined by (a function body)"
        }
        "ai.onnx.ml" => {
            "of this domain, models of numbers are compiled: do this step outside the model"
        }
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
        assert_eq!(INDEX.len(), rows().count());
    }
}
