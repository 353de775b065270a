// The table of operators: the contract of each is its schema in PyTorch.
#pragma once
#include "kit_attention.h"
#include "kit_convolution.h"
#include "kit_indices.h"
#include "kit_norms.h"
#include "kit_optimizers.h"
#include "kit_pooling.h"
#include "kit_random.h"

namespace kit {

struct Table {
  std::unordered_map<std::string, Make> makes;

  // "add.Tensor" for aten::add.Tensor
  void add(const std::string& name, const Make& make) { makes.emplace("aten::" + name, make); }
  // And for aten::add_.Tensor, which writes its first argument.
  void add_both(const std::string& name, const Make& make) {
    size_t dot = std::min(name.find('.'), name.size());
    add(name, make);
    add(name.substr(0, dot) + "_" + name.substr(dot), make);
  }
};

constexpr const char *kLarger = "x!=x?x:y!=y?y:x>y?x:y", *kSmaller = "x!=x?x:y!=y?y:x<y?x:y";
constexpr const char* kLerp = "fabs(s)<C(0.5)?x+s*(y-x):y-(y-x)*(1-s)";
constexpr const char* kLerpTensor = "fabs(z)<C(0.5)?x+z*(y-x):y-(y-x)*(1-z)";

inline void add_pointwise(Table& t) {
  t.add_both("add.Tensor", binary("x+s*y", kIntegers, 2));
  t.add_both("sub.Tensor", binary("x-s*y", kIntegers, 2));
  t.add_both("mul.Tensor", binary("x*y", kIntegers));
  t.add_both("div.Tensor", binary("x/y"));
  t.add_both("div.Tensor_mode", divide_by_mode);
  t.add_both("floor_divide", for_floats(binary("floor_divide(x,y)")));
  t.add_both("remainder.Tensor", for_floats(binary("fold(x,y)")));
  t.add_both("fmod.Tensor", for_floats(binary("fmod(x,y)")));
  t.add("rsub.Tensor", binary("y-s*x", kIntegers, 2));
  for (const char* name : {"maximum", "max.out"}) t.add(name, binary(kLarger, kIntegers));
  for (const char* name : {"minimum", "min.out"}) t.add(name, binary(kSmaller, kIntegers));
  t.add("fmax", binary("x!=x?y:y!=y?x:x>y?x:y", kIntegers));
  t.add("fmin", binary("x!=x?y:y!=y?x:x<y?x:y", kIntegers));
  t.add_both("atan2", binary("atan2(x,y)"));
  t.add_both("hypot", binary("hypot(x,y)"));
  t.add("logaddexp", binary("x==y&&isinf(x)?x:fmax(x,y)+log1p(exp(-fabs(x-y)))"));
  for (auto [name, f] : {std::pair{"eq", "x==y"}, {"ne", "x!=y"}, {"lt", "x<y"}, {"le", "x<=y"}, {"gt", "x>y"}, {"ge", "x>=y"}}) {
    t.add_both(std::string(name) + ".Tensor", binary(f, kIntegers));
    std::string with = f;
    with.back() = 's';
    static std::deque<std::string> formulas;
    t.add_both(std::string(name) + ".Scalar", compare_number(formulas.emplace_back(with).c_str()));
  }
  t.add_both("logical_and", binary("x!=0&&y!=0", kIntegers));
  t.add_both("logical_or", binary("x!=0||y!=0", kIntegers));
  t.add_both("logical_xor", binary("(x!=0)!=(y!=0)", kIntegers));
  t.add_both("logical_not", unary("x==0", kIntegers));
  t.add_both("bitwise_and.Tensor", bitwise("x&y", 2));
  t.add_both("bitwise_or.Tensor", bitwise("x|y", 2));
  t.add_both("bitwise_xor.Tensor", bitwise("x^y", 2));
  t.add_both("bitwise_not", bitwise("~x", 1, "x==0"));
  t.add("isnan", unary("x!=x", kIntegers));
  t.add("isposinf", unary("x==INFINITY", kIntegers));
  t.add("isneginf", unary("x==-INFINITY", kIntegers));
  t.add("where.self", formula("x!=0?y:z", 3, kIntegers));
  t.add_both("masked_fill.Scalar", binary("y!=0?s:x", kIntegers, 2));
  t.add_both("masked_fill.Tensor", formula("y!=0?z:x", 3, kIntegers));
  t.add_both("pow.Tensor_Scalar", with_number("s==2?x*x:s==1?x:s==C(0.5)?sqrt(x):pow(x,s)"));
  t.add_both("pow.Tensor_Tensor", binary("pow(x,y)"));
  t.add("pow.Scalar", formula_of("pow(s,x)", {1}, kFloats, 0));
  t.add_both("clamp", clamp);
  t.add_both("clamp_min", with_number("x<s?s:x", kIntegers));
  t.add_both("clamp_max", with_number("x>s?s:x", kIntegers));
  t.add_both("clamp.Tensor", clamp_tensor("x!=x?x:y!=y?y:z!=z?z:x<y?(y>z?z:y):x>z?z:x", kLarger, kSmaller));
  t.add_both("clamp_min.Tensor", binary(kLarger, kIntegers));
  t.add_both("clamp_max.Tensor", binary(kSmaller, kIntegers));
  t.add_both("addcmul", formula("x+s*y*z", 3, kIntegers, 3));
  t.add_both("addcdiv", formula("x+s*y/z", 3, kFloats, 3));
  t.add_both("lerp.Scalar", binary(kLerp, kFloats, 2));
  t.add_both("lerp.Tensor", formula(kLerpTensor, 3));
  for (auto [name, f] : {std::pair{"tanh", "tanh(x)"},
                         {"exp", "exp(x)"},
                         {"exp2", "exp2(x)"},
                         {"expm1", "expm1(x)"},
                         {"log", "log(x)"},
                         {"log2", "log2(x)"},
                         {"log10", "log10(x)"},
                         {"log1p", "log1p(x)"},
                         {"sqrt", "sqrt(x)"},
                         {"rsqrt", "1/sqrt(x)"},
                         {"reciprocal", "1/x"},
                         {"sigmoid", "sigmoid(x)"},
                         {"silu", "x*sigmoid(x)"},
                         {"sin", "sin(x)"},
                         {"cos", "cos(x)"},
                         {"tan", "tan(x)"},
                         {"asin", "asin(x)"},
                         {"acos", "acos(x)"},
                         {"atan", "atan(x)"},
                         {"sinh", "sinh(x)"},
                         {"cosh", "cosh(x)"},
                         {"asinh", "asinh(x)"},
                         {"acosh", "acosh(x)"},
                         {"atanh", "atanh(x)"},
                         {"erf", "erf(x)"},
                         {"erfc", "erfc(x)"},
                         {"mish", "x*tanh(softplus(x))"},
                         {"hardswish", "x*fmin(fmax(x+3,C(0)),C(6))/6"},
                         {"hardsigmoid", "x<-3?0:x>3?1:(x+3)/6"}})
    t.add_both(name, unary(f));
  for (auto [name, f] :
       {std::pair{"floor", "floor(x)"}, {"ceil", "ceil(x)"}, {"round", "rint(x)"}, {"trunc", "trunc(x)"}, {"frac", "x-trunc(x)"}})
    t.add_both(name, for_floats(unary(f)));
  for (auto [name, f] :
       {std::pair{"relu", "x<0?0:x"}, {"neg", "-x"}, {"abs", "x<0?-x:x==0?0:x"}, {"sign", "(x>0)-(x<0)"}, {"sgn", "(x>0)-(x<0)"}})
    t.add_both(name, unary(f, kIntegers));
  t.add_both("leaky_relu", with_number("x>0?x:x*s"));
  t.add_both("elu", formula("x>0?x*t:x!=x?x:s*t*expm1(x*q)", 1, kFloats, 1, 2, 3));
  t.add("softplus", formula("x*s>t?x:log1p(exp(x*s))/s", 1, kFloats, 1, 2));
  t.add_both("hardtanh", formula("x<s?s:x>t?t:x", 1, kIntegers, 1, 2));
  t.add_both("threshold", formula("x<=s?t:x", 1, kIntegers, 1, 2));
  t.add_both("gelu", gelu);
  t.add("gelu_backward", gelu_backward);
  t.add("tanh_backward", binary("x*(1-y*y)"));
  t.add("sigmoid_backward", binary("x*y*(1-y)"));
  t.add("silu_backward", binary("x*sigmoid(y)*(1+y*(1-sigmoid(y)))"));
  t.add("mish_backward", binary("x*(tanh(softplus(y))+y*sigmoid(y)*(1-tanh(softplus(y))*tanh(softplus(y))))"));
  t.add("threshold_backward", binary("y<=s?0:x", kFloats, 2));
  t.add("leaky_relu_backward", binary("y>0?x:x*s", kFloats, 2));
  t.add("hardtanh_backward", formula("y<=s||y>=t?0:x", 2, kFloats, 2, 3));
  t.add("hardswish_backward", binary("y<=-3?0:y<3?x*(y/3+C(0.5)):x"));
  t.add("hardsigmoid_backward", binary("y>-3&&y<3?x/6:0"));
  t.add("softplus_backward", formula("y*s>t?x:x*exp(y*s)/(exp(y*s)+1)", 2, kFloats, 2, 3));
  t.add("elu_backward", [](Call& call) {
    const char* f = call.is_true(4) ? "y<=0?x*q*(y+s*t):x*t" : "y<=0?x*q*s*t*exp(y*q):x*t";
    return formula_of(f, {0, 5}, kFloats, 1, 2, 3)(call);
  });
  t.add("native_dropout_backward", binary("x*y*s", kFloats, 2));
  t.add("copy_", copy);
  t.add("fill_.Scalar", fill);
  t.add("fill_.Tensor", fill_by_tensor);
  t.add("zero_", zero);
  t.add("cat", concatenate);
  t.add("flip", flip);
  t.add("roll", roll);
  t.add("glu", glu);
  t.add("glu_backward", glu_backward);
  t.add_both("tril", triangle(false));
  t.add_both("triu", triangle(true));
  t.add("arange.start_out", ramp(0, 2));
}

inline void add_rows(Table& t) {
  const Reduction product = {"1", "x", "x*y", "x", true}, some = {"0", "x!=0", "x||y", "x", true};
  const Reduction all = {"1", "x!=0", "x&&y", "x", true}, nonzero = {"0", "x!=0", "x+y", "x", true};
  t.add("sum", reduction(kSum, -1));
  t.add("sum.dim_IntList", reduction(kSum));
  t.add("mean", reduction(kMean, -1));
  for (const char* name : {"mean.dim", "mean.out"}) t.add(name, reduction(kMean));
  t.add("prod", reduction(product, -1));
  t.add("prod.dim_int", reduction(product));
  for (auto [name, over] : {std::pair{"", -1}, {".dim", 1}, {".dims", 1}, {".out", 1}}) {
    t.add(std::string("any") + name, reduction(some, over));
    t.add(std::string("all") + name, reduction(all, over));
  }
  t.add("count_nonzero", reduction(nonzero));
  t.add("count_nonzero.dim_IntList", reduction(nonzero));
  t.add("max", extreme_value(true, -1));
  t.add("min", extreme_value(false, -1));
  t.add("amax", extreme_value(true));
  t.add("amin", extreme_value(false));
  t.add("max.dim", extreme(true, true));
  t.add("min.dim", extreme(false, true));
  t.add("argmax", extreme(true, false));
  t.add("argmin", extreme(false, false));
  t.add("var.correction", variance(false, false));
  t.add("std.correction", variance(true, false));
  t.add("var_mean.correction", variance(false, true));
  t.add("std_mean.correction", variance(true, true));
  t.add("cumsum", running_sum);
  for (const char* name : {"linalg_vector_norm", "norm.ScalarOpt_dim"})
    t.add(name, [](Call& call) {
      return norm(call, call.target(), call.tensor(0), call.none(1) ? Number{-1, 2} : number_of(call, 1), 2);
    });
  t.add("_softmax", softmax(0));
  t.add("_log_softmax", softmax(1));
  t.add("_softmax_backward_data", softmax_backward(0));
  t.add("_log_softmax_backward_data", softmax_backward(1));
  t.add("native_layer_norm", layer_norm);
  t.add("native_layer_norm_backward", layer_norm_backward);
  t.add("_fused_rms_norm", rms_norm);
  t.add("_fused_rms_norm_backward", rms_norm_backward);
  t.add("native_group_norm", group_norm);
  t.add("native_group_norm_backward", group_norm_backward);
  t.add("native_batch_norm", batch_norm);
  t.add("native_batch_norm_backward", batch_norm_backward);
}

inline void add_products_and_images(Table& t) {
  for (const char* name : {"mm", "bmm", "mv", "dot"}) t.add(name, matrices);
  for (const char* name : {"addmm", "baddbmm", "addmv"}) t.add_both(name, add_product);
  t.add("convolution", convolution);
  t.add("convolution_backward", convolution_backward);
  t.add("max_pool2d_with_indices", max_pool(2));
  t.add("max_pool2d_with_indices_backward", max_pool_backward(2));
  t.add("max_pool3d_with_indices", max_pool(3));
  t.add("max_pool3d_with_indices_backward", max_pool_backward(3));
  for (auto [over, name] : {std::pair{2, "pool2d"}, {3, "pool3d"}})
    for (bool backward : {false, true}) {
      std::string rest = std::string(name) + (backward ? "_backward" : "");
      t.add("avg_" + rest, average_pool(over, backward));
      t.add("_adaptive_avg_" + rest, adaptive_average_pool(over, backward));
      t.add("adaptive_max_" + rest, adaptive_max_pool(over, backward));
    }
  for (auto [over, nearest, linear] :
       {std::tuple{1, "nearest1d", "linear1d"}, {2, "nearest2d", "bilinear2d"}, {3, "nearest3d", "trilinear3d"}})
    for (bool backward : {false, true}) {
      std::string end = backward ? "_backward" : "";
      t.add(std::string("upsample_") + nearest + end, interpolation(over, false, backward));
      t.add(std::string("upsample_") + linear + end, interpolation(over, true, backward));
    }
  for (bool drops : {false, true}) {
    std::string name = std::string("_scaled_dot_product_flash_attention") + (drops ? "" : "_for_cpu");
    t.add(name, attention(drops));
    t.add(name + "_backward", attention_backward(drops));
  }
}

inline void add_indices_and_losses(Table& t) {
  t.add("embedding", embedding);
  t.add("embedding_dense_backward", embedding_backward);
  t.add("index_select", index_select);
  t.add_both("index_copy", index_rows(0));
  t.add_both("index_add", index_rows(1));
  t.add_both("index_fill.int_Scalar", index_rows(2));
  t.add("gather", gather);
  t.add_both("scatter.src", scatter(0));
  t.add_both("scatter.value", scatter(0));
  t.add_both("scatter_add", scatter(1));
  t.add_both("scatter.reduce", scatter_reduce);
  t.add_both("scatter_reduce.two", scatter_reduce);
  t.add("index.Tensor", read_places);
  t.add_both("index_put", write_places);
  t.add("_index_put_impl_", write_places);
  t.add("nll_loss_forward", nll);
  t.add("nll_loss_backward", nll_backward);
  t.add("nll_loss2d_forward", nll);
  t.add("nll_loss2d_backward", nll_backward);
  const char* smooth = "fabs(x-y)<s?C(0.5)*(x-y)*(x-y)/s:fabs(x-y)-C(0.5)*s";
  const char* smooth_backward = "t*x*(y-z<=-s?C(-1):y-z>=s?C(1):(y-z)/s)";
  t.add("mse_loss", loss("(x-y)*(x-y)", 2));
  t.add("mse_loss_backward", loss_backward("t*2*x*(y-z)", 3));
  t.add("smooth_l1_loss", loss(smooth, 2, 3));
  t.add("smooth_l1_loss_backward", loss_backward(smooth_backward, 3, 4));
  t.add("huber_loss", loss("fabs(x-y)<=s?C(0.5)*(x-y)*(x-y):s*(fabs(x-y)-C(0.5)*s)", 2, 3));
  t.add("huber_loss_backward", loss_backward("t*x*(y-z<=-s?-s:y-z>=s?s:y-z)", 3, 4));
  t.add("binary_cross_entropy", unweighted(2, loss("(y-1)*fmax(log1p(-x),C(-100))-y*fmax(log(x),C(-100))", 3)));
  t.add("binary_cross_entropy_backward", unweighted(3, loss_backward("t*x*(y-z)/fmax((1-y)*y,C(1e-12))", 4)));
}

inline void add_lists(Table& t) {
  for (auto [name, f, by_number] : {std::tuple{"add", "x+s*y", "x+s"}, {"sub", "x-s*y", "x-s"}}) {
    std::string op = std::string("_foreach_") + name;
    t.add_both(op + ".List", lists(f, 2, 2));
    t.add_both(op + ".Scalar", lists(by_number, 1, 1));
    t.add_both(op + ".ScalarList", lists(by_number, 1, 1));
  }
  for (auto [name, f, by_number] : {std::tuple{"mul", "x*y", "x*s"}, {"div", "x/y", "x/s"}}) {
    std::string op = std::string("_foreach_") + name;
    t.add_both(op + ".List", lists(f, 2));
    t.add_both(op + ".Scalar", lists(by_number, 1, 1));
    t.add_both(op + ".ScalarList", lists(by_number, 1, 1));
    t.add_both(op + ".Tensor", lists_by_tensor(f));
  }
  for (auto [name, f] : {std::pair{"sqrt", "sqrt(x)"},
                         {"rsqrt", "1/sqrt(x)"},
                         {"exp", "exp(x)"},
                         {"neg", "-x"},
                         {"abs", "fabs(x)"},
                         {"reciprocal", "1/x"},
                         {"sign", "(x>0)-(x<0)"}})
    t.add_both(std::string("_foreach_") + name, lists(f, 1));
  for (auto [name, f] : {std::pair{"maximum", kLarger}, {"clamp_min", kLarger}, {"minimum", kSmaller}, {"clamp_max", kSmaller}})
    t.add_both(std::string("_foreach_") + name + ".List", lists(f, 2));
  for (const char* form : {".Scalar", ".ScalarList"}) {
    t.add_both(std::string("_foreach_maximum") + form, lists("x<s?s:x", 1, 1));
    t.add_both(std::string("_foreach_clamp_min") + form, lists("x<s?s:x", 1, 1));
    t.add_both(std::string("_foreach_minimum") + form, lists("x>s?s:x", 1, 1));
    t.add_both(std::string("_foreach_clamp_max") + form, lists("x>s?s:x", 1, 1));
    t.add_both(std::string("_foreach_pow") + form, lists("s==2?x*x:pow(x,s)", 1, 1));
    t.add_both(std::string("_foreach_lerp") + form, lists(kLerp, 2, 2));
    t.add_both(std::string("_foreach_addcmul") + form, lists("x+s*y*z", 3, 3));
    t.add_both(std::string("_foreach_addcdiv") + form, lists("x+s*y/z", 3, 3));
  }
  t.add_both("_foreach_lerp.List", lists(kLerpTensor, 3));
  t.add("_foreach_copy_", list_copy);
  t.add("_foreach_zero_", list_zero);
  t.add("_foreach_norm.Scalar", list_norms);
  t.add("_fused_adamw_", adam(true));
  t.add("_fused_adam_", adam(false));
  t.add("_fused_sgd_", sgd);
}

inline void add_random(Table& t) {
  static const std::string by_logarithm =
      std::string("(x >= 1 - ") + kEpsilon + " / 2 ? -" + kEpsilon + " / 2 : log(x)) * (-1 / s)";
  static const std::string cauchy = std::string("s + t * tan(C(3.14159265358979323846) * ") +
                                    "(sizeof(TS) == 8 ? x - C(0.5) : fmin(fmax(x, " + kEpsilon + "), 1 - " + kEpsilon +
                                    ") - C(0.5)))";
  t.add("uniform_", drawn("uniform", kUniform, kFloats, true));
  t.add("normal_", drawn("normal", "fma(x, t, s)", kFloats, true));
  t.add("log_normal_", drawn("normal", "exp(fma(x, t, s))", kFloats, true));
  t.add("cauchy_", drawn("uniform", cauchy.c_str(), kFloats, true));
  t.add("exponential_", drawn("uniform", by_logarithm.c_str()));
  t.add("geometric_", drawn("uniform", "ceil(log(x) / log1p(-s))", kIntegers));
  t.add("bernoulli_.float", drawn("uniform", "x < s", kIntegers));
  t.add("bernoulli_.Tensor", [](Call& call) { return bernoulli_of(call, 1); });
  t.add("bernoulli", [](Call& call) { return bernoulli_of(call, 0); });
  t.add("random_", random_integers(-1, -1));
  t.add("random_.to", random_integers(-1, 1));
  t.add("random_.from", random_integers(1, 2));
  t.add("native_dropout", dropout);
}

inline const Table& operators() {
  static const Table* table = [] {
    auto* t = new Table();
    add_pointwise(*t);
    add_rows(*t);
    add_products_and_images(*t);
    add_indices_and_losses(*t);
    add_lists(*t);
    add_random(*t);
    return t;
  }();
  return *table;
}

// Returns the plan of an operator, null if it has none. Of "aten::mul.out", which ends with the arguments that it writes, it is
// that of "aten::mul" or "aten::mul.Tensor".
inline const Make* make_of(const std::string& op) {
  std::vector<std::string> names = {op};
  for (const char* end : {".out", "_out", ".grad_input"}) {
    size_t length = std::strlen(end);
    if (op.size() <= length || op.compare(op.size() - length, length, end) != 0) continue;
    names.push_back(op.substr(0, op.size() - length));
    names.push_back(names.back() + ".Tensor");
  }
  for (const std::string& name : names) {
    auto entry = operators().makes.find(name);
    if (entry != operators().makes.end()) return &entry->second;
  }
  return nullptr;
}

// True if an operator may have empty tensors among others.
inline bool takes_empty(const std::string& op) {
  static const std::string some =
      ",cat,sum,sum.dim_IntList,mean,mean.dim,prod,prod.dim_int,any,all,mm,bmm,addmm,baddbmm,native_batch_norm,"
      "native_batch_norm_backward,";
  std::string name = op.substr(std::strlen("aten::"));
  return name.rfind("_foreach_", 0) == 0 || name.rfind("_fused_", 0) == 0 || some.find("," + name + ",") != std::string::npos;
}

}  // namespace kit
