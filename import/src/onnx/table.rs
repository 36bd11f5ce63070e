//! The operators: one row each. A handler knows the versions at which its
//! operator's meaning changed; adding an operator is adding a row:
//! `"Name" => handler,` or, where not the whole definition converts or no kernel
//! does the work, `"Name" => handler; Compiled "what is missing" "what else",`.
//! `docs/onnx-operators.md` is made from the rows (`KILN_BLESS=1` in its test).

use super::cx::{Cx, Fail, Items, Out};
use super::ops::{
    attention, control, conv_transpose, deform, detection, elementwise as e, eliminate, grid,
    index, layout, linear, loops, loss, microsoft as ms, ml, ngrams, norm, quant, random,
    recurrence, recurrent, recurrent::Cell, reduce, resize, sequence, signal, source, strings,
    training, unique, window,
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
    /// Where its work is done.
    pub(crate) how: How,
    /// What of its definition does not convert.
    pub(crate) limits: &'static [&'static str],
}

/// Where an operator's work is done.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum How {
    /// In compiled code.
    Compiled,
    /// While importing: nothing is left to run, or only copies.
    Folded,
    /// By the runtime, around compiled code.
    Control,
}

macro_rules! rows {
    ($convert:ident: $($domain:literal { $($op:literal => $handler:expr $(; $how:ident $($limit:literal)*)?,)* })*) => {
        &[$($(Row {
            domain: $domain,
            op: $op,
            convert: Convert::$convert($handler),
            how: how!($($how)?),
            limits: &[$($($limit),*)?],
        },)*)*]
    };
}

macro_rules! how {
    () => {
        How::Compiled
    };
    ($how:ident) => {
        How::$how
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
        "Cast" => e::cast; Compiled "from and to strings: by the runtime",
        "CastLike" => e::cast_like; Compiled "from and to strings: by the runtime",
        "Dropout" => e::dropout,
        // Constants and sizes.
        "Constant" => source::constant; Folded,
        "ConstantOfShape" => source::constant_of_shape,
        "EyeLike" => source::eye_like,
        "OneHot" => source::one_hot,
        "Range" => source::range,
        "Shape" => source::shape; Folded,
        "Size" => source::size; Folded,
        // Layout.
        "CenterCropPad" => layout::center_crop_pad; Compiled "the shape is known while importing",
        "Concat" => layout::concat,
        "DepthToSpace" => layout::depth_to_space,
        "Expand" => layout::expand,
        "Flatten" => layout::flatten,
        "Pad" => layout::pad; Compiled "the paddings and axes are known while importing",
        "Reshape" => layout::reshape; Compiled "the rank of the result is known while importing",
        "Slice" => layout::slice; Compiled "the axes and steps are known while importing",
        "SpaceToDepth" => layout::space_to_depth,
        "Split" => layout::split,
        "Squeeze" => layout::squeeze; Compiled "the axes are known while importing",
        "Tile" => layout::tile,
        "Transpose" => layout::transpose,
        "Trilu" => layout::trilu,
        "Unsqueeze" => layout::unsqueeze; Compiled "the axes are known while importing",
        // Indexing.
        "Compress" => index::compress,
        "Gather" => index::gather,
        "GatherElements" => index::gather_elements,
        "GatherND" => index::gather_nd,
        "NonZero" => index::non_zero; Control,
        "ReverseSequence" => index::reverse_sequence,
        "Scatter" => index::scatter_elements,
        "ScatterElements" => index::scatter_elements,
        "ScatterND" => index::scatter_nd,
        "TensorScatter" => index::tensor_scatter,
        "TopK" => index::top_k; Control,
        "Unique" => unique::unique,
        "ArgMax" => |c| index::arg_reduce(c, true),
        "ArgMin" => |c| index::arg_reduce(c, false),
        // Strings.
        "RegexFullMatch" => strings::regex_full_match; Control "no `\\C`",
        "StringConcat" => strings::concat; Control,
        "StringNormalizer" => strings::normalize; Control,
        "StringSplit" => strings::split; Control,
        // Reductions.
        "CumProd" => |c| reduce::cumulate(c, ReduceFn::Prod); Compiled
            "the axis is known while importing",
        "CumSum" => |c| reduce::cumulate(c, ReduceFn::Sum); Compiled
            "the axis is known while importing",
        "ReduceL1" => |c| reduce::reduce(c, reduce::Kind::L1); Compiled
            "the axes are known while importing",
        "ReduceL2" => |c| reduce::reduce(c, reduce::Kind::L2); Compiled
            "the axes are known while importing",
        "ReduceLogSum" => |c| reduce::reduce(c, reduce::Kind::LogSum); Compiled
            "the axes are known while importing",
        "ReduceLogSumExp" => |c| reduce::reduce(c, reduce::Kind::LogSumExp); Compiled
            "the axes are known while importing",
        "ReduceMax" => |c| reduce::reduce(c, reduce::Kind::Max); Compiled
            "the axes are known while importing",
        "ReduceMean" => |c| reduce::reduce(c, reduce::Kind::Mean); Compiled
            "the axes are known while importing",
        "ReduceMin" => |c| reduce::reduce(c, reduce::Kind::Min); Compiled
            "the axes are known while importing",
        "ReduceProd" => |c| reduce::reduce(c, reduce::Kind::Prod); Compiled
            "the axes are known while importing",
        "ReduceSum" => |c| reduce::reduce(c, reduce::Kind::Sum); Compiled
            "the axes are known while importing",
        "ReduceSumSquare" => |c| reduce::reduce(c, reduce::Kind::SumSquare); Compiled
            "the axes are known while importing",
        "GlobalAveragePool" => |c| reduce::global_pool(c, reduce::Kind::Mean),
        "GlobalMaxPool" => |c| reduce::global_pool(c, reduce::Kind::Max),
        // Convolution and pooling.
        "AveragePool" => window::average_pool; Compiled
            "with ceil_mode, whether the last window begins inside must follow from what is known of the sizes",
        "Conv" => window::conv; Compiled "the extents of the filter are known while importing",
        "ConvInteger" => window::conv_integer,
        "ConvTranspose" => conv_transpose::conv_transpose; Compiled
            "the extents of the filter and the number of channels are known while importing",
        "DeformConv" => deform::deform_conv,
        "GlobalLpPool" => window::global_lp_pool,
        "LRN" => window::lrn,
        "CausalConvWithState" => window::causal_conv,
        "Col2Im" => window::col2im; Compiled
            "the image's and the block's shape are known while importing",
        "LpPool" => window::lp_pool; Compiled "as AveragePool",
        "MaxUnpool" => window::max_unpool,
        "MaxPool" => window::max_pool; Compiled "as AveragePool",
        "QLinearConv" => window::qlinear_conv,
        // Resampling.
        "AffineGrid" => grid::affine_grid,
        "GridSample" => grid::grid_sample; Compiled "at most 3 sampled axes",
        "Resize" => resize::resize; Compiled
            "scales and the region are known while importing"
            "an antialiased or aspect-keeping resampling needs known extents",
        "Upsample" => resize::upsample; Compiled "the scales are known while importing",
        // Recurrent layers.
        "GRU" => |c| recurrent::recurrent(c, Cell::Gru),
        "LSTM" => |c| recurrent::recurrent(c, Cell::Lstm),
        "RNN" => |c| recurrent::recurrent(c, Cell::Rnn),
        // Signals.
        "BlackmanWindow" => |c| signal::window(c, [0.42, 0.5, 0.08]),
        "DFT" => signal::dft; Compiled
            "the axis and the length are known while importing, and the length is at most 4,096",
        "HammingWindow" => |c| signal::window(c, [25.0 / 46.0, 21.0 / 46.0, 0.0]),
        "HannWindow" => |c| signal::window(c, [0.5, 0.5, 0.0]),
        "MelWeightMatrix" => signal::mel_weights,
        "STFT" => signal::stft; Compiled
            "the step, the length of a frame and of the window are known while importing",
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
        "TfIdfVectorizer" => ngrams::tf_idf; Compiled
            "integers only"
            "the number of tokens is known while importing",
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
        "BatchNormalization" => norm::batch_norm; Compiled "inference only",
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
        "Attention" => attention::attention; Compiled "the head size is known while importing",
        "LinearAttention" => recurrence::linear_attention; Compiled
            "the head size is known while importing",
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
        "CategoryMapper" => ml::labels::category_mapper,
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
        "FlexAttention" => attention::flex_attention; Compiled
            "the head size is known while importing",
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
        "ConvTransposeWithDynamicPads" => conv_transpose::conv_transpose_padded,
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
        "RotaryEmbedding" => attention::microsoft_rotary_embedding; Compiled
            "no scale; positions one by one, not as an offset",
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
        "ConcatFromSequence" => sequence::concat_from_sequence; Folded,
        "Identity" => sequence::identity; Folded,
        "If" => control::branch; Control
            "a condition that is known takes its branch while importing"
            "branches yield values of the same ranks, and sequences of the same structure",
        "Loop" => loops::repeat; Control
            "carried sequences and optionals: the steps are known (at most 1,024, unrolled), or each step appends one tensor of one shape",
        "Optional" => sequence::optional; Folded,
        "OptionalGetElement" => sequence::get_element; Folded,
        "OptionalHasElement" => sequence::has_element; Folded,
        "Scan" => control::scan; Control "of opset 8: one batch entry, no sequence lengths",
        "SequenceAt" => sequence::at; Folded
            "a position that data decides needs elements of one shape",
        "SequenceConstruct" => sequence::construct; Folded,
        "SequenceEmpty" => sequence::empty; Folded,
        "SequenceErase" => sequence::erase; Folded "the position is known while importing",
        "SequenceInsert" => sequence::insert; Folded "the position is known while importing",
        "SequenceLength" => sequence::length; Folded,
        "SequenceMap" => sequence::map; Folded
            "one body for each element; over an unknown number of elements, a loop whose results have one shape",
        "SplitToSequence" => sequence::split_to_sequence; Folded
            "the number of pieces is known while importing, except for pieces of one position",
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
pub(crate) fn suggestion(domain: &str) -> &'static str {
    match domain {
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
