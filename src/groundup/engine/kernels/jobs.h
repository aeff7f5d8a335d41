// What a call of the library is told: plain data, the same for every instruction set.
//
// Letters: m tokens (rows of activations), n output channels, k input channels, g groups of input channels.
// Strides count elements. Every pointer is to memory of the caller, contiguous but for the strides named.
#pragma once

#include <cstdint>

// Output channels whose weights lie together, and those that a packed matrix is padded to a multiple of.
constexpr int64_t kPanel = 16;
constexpr int64_t kRowMultiple = 64;
// Columns that one running sum of the activations covers; every group is a multiple of it.
constexpr int64_t kSumColumns = 32;
// Keys that attention looks at together; the slots of a key-value block are a multiple of it.
constexpr int64_t kStrip = 16;
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxStreams = 64;
// What ranks of adapters are padded to a multiple of.
constexpr int64_t kRankMultiple = 4;

// What the numbers of a matrix are: integers of 4 or 8 bits, or floating. Wide bfloat16 is multiplied by float32.
enum Format : int64_t { kW4, kW8, kFloat32, kBfloat16, kFloat16, kWideBfloat16, kFormats };

// A quantized matrix is packed: `values` [n/16][k/8][16][4] bytes of two 4-bit integers or [n/16][k/4][16][4] of 8 bits,
// unsigned around 8 or 128; `scales` [n/16][k/group][16], half precision with 4 bits and float32 with 8.
// In 4 bits a byte holds column k in its low half and column k + 4 in its high half.
// A floating one is as anybody has it, `values` [n][k], without scales.
struct Matrix {
  const uint8_t* values;
  const void* scales;
  int64_t rows;     // without padding
  int64_t columns;  // of a quantized one: padded to a multiple of group
  int64_t group;    // columns that share a scale: all of them with 8 bits
  int64_t format;   // see Format
};

// What is multiplied by a matrix, as its format wants it.
// Quantized: values [m][stride] in -127..127 with zeros behind the row's end, one scale for each token, and
// running_sums[m][i] = the sum of the token's first 32·i values, from which that of any group is one subtraction.
// float32, for matrices of float32, half precision and wide bfloat16: values [m][stride], no more.
// bfloat16: what RoundJob has made, in an order of the level's own; the stride is that of QuantizeJob.
struct Activations {
  void* values;
  float* scales;
  int32_t* running_sums;  // [m][stride / 32 + 1]
  int64_t rows;
  int64_t first;   // the number of the first of these rows
  int64_t stride;  // of QuantizeJob and RoundJob: a multiple of 128
};

struct QuantizeJob {
  const float* input;
  int64_t input_stride;
  int64_t width;
  Activations out;
};

// Rounds to bfloat16; there is room for 4 · stride bytes for each token of whole sets of 16.
struct RoundJob {
  const float* input;
  int64_t input_stride;
  int64_t width;
  Activations out;
};

// Of neighbouring logits, 32 or fewer: the largest, and the sum of e^logit. Whoever multiplies finds both while the logits are
// in its cache; whoever chooses a token need not read them.
struct Peak {
  float largest, total;
};

// out[m][n] = scales[m] · Σ_g scale[n][g] · Σ_k weight[n][k] · value[m][k] + bias[n] + residual[m][n], or without scales
struct LinearJob {
  Matrix weight;
  Activations input;
  const float* bias;      // or null
  const float* residual;  // or null; may be `out` itself
  float* out;
  int64_t out_stride;  // of `residual` too
  Peak* peaks;         // of each token's outputs, in their order, tokens `peak_stride` apart; or null
  int64_t peak_stride;
};

// Rows of a matrix by number, as float32: what an embedding is.
struct GatherJob {
  Matrix weight;
  const int64_t* ids;  // negative: a row of zeros
  int64_t count;
  float* out;
  int64_t width;  // columns without padding
};

struct NormJob {
  const float* input;
  float* out;
  const float* weight;  // or null
  const float* bias;    // or null
  int64_t rows;
  int64_t width;
  int64_t input_stride;
  int64_t out_stride;
  int64_t weights;  // of `weight` and `bias`, each of the width: rows take them in turn
  float eps;
  int32_t centred;   // layer norm; otherwise root mean square
  int32_t plus_one;  // multiply by 1 + weight
};

// Turns, in place, pairs of the first `dims` numbers of each head by the angles of the token's position.
struct RopeJob {
  float* x;  // [m][heads][head_dim], tokens `stride` apart
  const float* cosine;
  const float* sine;  // [positions][dims / 2]
  const int32_t* positions;
  int64_t rows;
  int64_t heads;
  int64_t head_dim;
  int64_t dims;
  int64_t stride;
  int32_t interleaved;  // pairs (2i, 2i + 1) instead of (i, i + dims / 2)
};

// out = f(min(gate, limit)) · (clamp(up, ± limit) + up_offset), without the product where up is null;
// f(x) = activation(sharpness · x) / sharpness.
struct ActivateJob {
  const float* gate;
  const float* up;
  float* out;
  int64_t rows;
  int64_t width;
  int64_t gate_stride;
  int64_t up_stride;
  int64_t out_stride;
  int32_t activation;  // see Activation
  float sharpness;
  float limit;  // infinite: none
  float up_offset;
};

enum Activation : int32_t { kSilu, kGelu, kGeluTanh, kQuickGelu, kRelu, kReluSquared, kTanh, kActivations };

struct AddJob {
  float* x;  // x += y
  const float* y;
  int64_t count;
};

// x = weights[kind][0] · x + Σ_j (weights[kind][1 + j] + gates[j] · x) · streams[j], token by token, each of a kind of its
// own.
struct MixJob {
  float* x;              // [m][width]
  const float* streams;  // [terms][m][width], `stream_stride` apart
  const float* weights;  // [kinds][1 + terms]
  const float* gates;    // [terms][width] or null: 0
  const int64_t* kinds;  // [m]
  int64_t rows;
  int64_t width;
  int64_t terms;  // at most kMaxStreams
  int64_t stream_stride;
};

// out[m][h] = base[m][h] + factor · sigmoid(input[m] · weight[h]) · x[m][h]
struct GateJob {
  const float* input;   // [m], of which the first `channels` count
  const float* weight;  // [heads][channels]
  const float* x;       // [m][heads][head_dim]
  const float* base;    // likewise, or null: 0
  float* out;           // likewise; may be x or base
  int64_t rows;
  int64_t heads;
  int64_t head_dim;
  int64_t channels;
  int64_t input_stride;
  float factor;
};

// out[m] = base[m] + Σ_c weights[m][c] · y[places[m][c]]
struct CombineJob {
  const float* y;         // rows of the width
  const float* weights;   // [m][choices]
  const int64_t* places;  // likewise
  const float* base;      // [m][width] or null: 0
  float* out;             // likewise; may be base
  int64_t rows;
  int64_t width;
  int64_t choices;
};

// What an adapter adds to a linear map, up · (down · x), with its scale in `up`; nothing where `down` is null. Both are
// padded with zeros: k to a multiple of 16, n of 64. What is read next lies behind what is read now, as `up` behind `down`.
struct LowRank {
  const void* down;   // [rank/4][k/16][4][16]; of a table [rows of the table][rank] float32
  const void* up;     // [n/16][rank][16]
  int64_t rank;       // a multiple of 4, with zeros
  int32_t down_bits;  // 32: float32, 16: bfloat16
  int32_t up_bits;
};

// The maps of one input to which adapters may add: an instruction has one of these for each.
struct AdaptJob {
  const float* input;  // [m][width], or null where a table's rows are looked up:
  const int64_t* ids;  // [m]
  float* out;          // [m][outputs]
  int64_t width;
  int64_t outputs;
  int64_t number;  // of the map in `AdaptedTokens`
};

// Tokens of a step that have the same adapter.
struct AdaptedTokens {
  const LowRank* changes;  // of all maps by their numbers
  const int64_t* tokens;   // [count], or null: all
  int64_t count;
};

// out[m] += up · (down · input[m]) for the tokens of one adapter and for one map.
struct LowRankJob {
  LowRank change;
  const float* input;
  const int64_t* ids;     // likewise
  const int64_t* tokens;  // likewise
  float* between;         // [count][rank]
  float* out;
  int64_t count;
  int64_t width;
  int64_t outputs;
};

// How a row's token is chosen: see Draw in draws.py.
struct Draw {
  double temperature;  // 0: the likeliest
  int64_t top_k;       // 0: all
  double top_p;
  double min_p;
  double number;  // from [0, 1)
};

// normaliser: log of the sum of exponentials of the row; not a number if that is none, and so is logprob then.
struct Chosen {
  int64_t token;
  double logprob;
  double normaliser;
};

struct ChooseJob {
  const float* logits;  // [m][width], rows `stride` apart
  const Draw* draws;    // [m]
  Chosen* chosen;       // [m]
  int64_t rows;
  int64_t width;
  int64_t stride;
  const Peak* peaks;  // of the logits, as a product left them at the same level; or null
  int64_t peak_stride;
};

// Blocks of keys and values. Keys lie transposed, so that scores need no sums across a register:
// keys [block][kv_head][head_dim][block_size], values [block][kv_head][block_size][head_dim padded to 16]. As bfloat16,
// numbers that are summed over stand in pairs: keys [block][kv_head][head_dim / 2, upwards][block_size][2 dimensions],
// values [block][kv_head][block_size / 2][head_dim padded to 16][2 slots]. As int8, a head's key or value of one token is
// -127 … 127 times a scale of its own: [block][kv_head][block_size].
struct KeyValueBlocks {
  void* keys;
  void* values;
  float* key_scales;  // or null
  float* value_scales;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t block_size;  // a multiple of 16
  int32_t bits;        // 32: float32, 16: bfloat16, 8: int8
};

struct StoreJob {
  KeyValueBlocks blocks;
  const float* keys;
  const float* values;   // [m][kv_heads][head_dim], tokens `stride` apart
  const int64_t* slots;  // [m]: block · block_size + place in the block
  int64_t rows;
  int64_t key_stride;
  int64_t value_stride;
  int64_t windowed;  // in a program: whether the slots are those in blocks of windows
};

// Causal attention of the last tokens of each sequence to all of its keys.
struct AttentionJob {
  KeyValueBlocks blocks;
  const float* queries;  // [m][heads][head_dim], tokens `query_stride` apart
  float* out;            // likewise
  const int32_t* block_table;   // [sequences][table_stride]
  const int32_t* query_starts;  // [sequences + 1]: tokens of sequence s are query_starts[s] … query_starts[s + 1] - 1
  const int32_t* key_counts;    // [sequences], the new tokens included
  const float* sinks;           // [heads] or null
  int64_t sequences;
  int64_t heads;
  int64_t query_stride;
  int64_t out_stride;
  int64_t table_stride;
  int64_t window;  // keys that a query sees, itself included; 0 is all
  int64_t windowed;  // in a program: whether the table is that of blocks of windows
  float scale;
  float softcap;  // 0 is none
};

// A model's step as instructions, each an operation with its job; those that follow each other work on what the ones
// before have left. In such a job, what counts tokens counts what there is of each token instead: the `rows` of a norm
// are heads, those of activations mostly 1, the `count` of a sum is the width. `tokens` and the tables below hold for all of them.
enum Operation : int64_t {
  kQuantize, kLinear, kNorm, kRope, kActivate, kAdd, kStore, kAttend, kGather, kMix, kGate, kCombine, kGrouped,
  kAdapt, kRound, kOperations
};

struct Instruction {
  int64_t operation;
  const void* job;
  int64_t jobs;  // products of the same activations that are shared out as one, or maps that are adapted: of an array
};

// Products that see different rows of the same activations: product i those of group i % groups, from starts[i % groups]
// to starts[i % groups + 1] - 1. All are shared out as one.
struct GroupedJob {
  const LinearJob* products;  // as of all rows
  int64_t count;
  int64_t groups;
  const int64_t* starts;  // [groups + 1]
};

struct ProgramJob {
  const Instruction* instructions;
  int64_t count;
  int64_t tokens;
  int64_t sequences;
  int64_t table_stride;
  const int32_t* positions;  // [tokens]
  const int64_t* slots;      // [tokens], see StoreJob
  const int32_t* block_table;
  const int32_t* query_starts;
  const int32_t* key_counts;  // see AttentionJob
  const int64_t* window_slots;
  const int32_t* window_table;  // slots and table of the layers that have blocks of windows
  const AdaptedTokens* adapted;
  int64_t adapters;  // of which there are so many
};
