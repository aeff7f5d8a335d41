// The next token of a row of logits: the likeliest, or one drawn from those that are left; choose.py has the definition.
// Included once for every level.
//
// Weights are probabilities up to a factor, which makes that of the likeliest 1. All filters keep the likeliest tokens
// up to some weight, the border, which is looked for by halving, without sorting anything: weights are positive, so
// their order is that of their bits as integers. Weights are summed in the same sixteen lanes at every level, and made
// without fusing a product with a sum, so that the token does not depend on the instructions of the machine.

constexpr int64_t kLanes = 16, kParts = kLanes / W;
// Numbers whose sum is taken in float32 before it goes into a double: with 32 to a lane no digit that counts is lost.
constexpr int64_t kSumBlock = 512;

INLINE float sum_of(const F (&sums)[kParts]) {
  float lane[kLanes];
  std::memcpy(lane, sums, sizeof lane);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

INLINE int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
INLINE float of_bits(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The place of the first of the largest logits, or none.
constexpr int64_t kNoPlace = -1;

// kNoPlace where the largest is infinite, and where something is no number.
static int64_t place_of_largest(const float* x, int64_t width) {
  float peak = -INFINITY;
  int64_t place = 0;
  I strange = {};
  for (int64_t start = 0; start < width; start += kSumBlock) {
    F largest = splat(-INFINITY);
    for (int64_t i = start; i < std::min(start + kSumBlock, width); i += W) {
      const F here = load_logits(x + i, width - i);
      largest = max(here, largest);
      strange |= here != here;
    }
    const float top = reduce_max(largest);
    if (top > peak) peak = top, place = start;
  }
  for (int lane = 0; lane < W; ++lane) {
    if (strange[lane]) return kNoPlace;
  }
  if (!std::isfinite(peak)) return kNoPlace;
  while (x[place] != peak) ++place;
  return place;
}

// exp((x - peak) / temperature) of each number, and zeros behind the last up to a multiple of kLanes, into `weights`
// unless that is null. Returns their sum.
template <F (*multiply_add)(F, F, F)>
static double weigh(const float* x, int64_t width, float peak, double temperature, float* weights) {
  // Neither infinite nor 0, which would make no number of a difference of 0 or of infinity.
  const auto factor = static_cast<float>(1.44269504088896340736 * std::clamp(1 / temperature, 1e-30, 1e30));
  double total = 0;
  for (int64_t start = 0; start < width; start += kSumBlock) {
    F sums[kParts] = {};
    for (int64_t i = start; i < std::min(start + kSumBlock, width); i += kLanes) {
      for (int64_t part = 0; part < kParts; ++part) {
        const int64_t at = i + part * W;
        const F weight = power_of_two<multiply_add>((load_logits(x + at, width - at) - peak) * factor);
        sums[part] += weight;
        if (weights != nullptr) store(weights + at, weight);
      }
    }
    total += sum_of(sums);
  }
  return total;
}

// How many tokens, and their weights together.
struct Share {
  int64_t count = 0;
  double mass = 0;
};

// Of the weights from a border on. `count` may be rounded up to a multiple of kLanes: what is read behind is zeros.
static Share share_from(const float* weights, int64_t count, int32_t border) {
  Share share;
  I counts = {};
  for (int64_t start = 0; start < count; start += kSumBlock) {
    F sums[kParts] = {};
    for (int64_t i = start; i < std::min(start + kSumBlock, count); i += kLanes) {
      for (int64_t part = 0; part < kParts; ++part) {
        const I bits = (I)load(weights + i + part * W), kept = bits >= border;
        sums[part] += (F)(bits & kept);
        counts -= kept;
      }
    }
    share.mass += sum_of(sums);
  }
  for (int lane = 0; lane < W; ++lane) share.count += counts[lane];
  return share;
}

// Those from `low` to below `high`, side by side, with zeros behind them; `to` may be `weights`. Returns how many.
static int64_t pack_between(const float* weights, int64_t count, int32_t low, int32_t high, float* to) {
  int64_t packed = 0;
  for (int64_t i = 0; i < count; i += W) {
    const F weight = load(weights + i);
    packed += pack(to + packed, weight, ((I)weight >= low) & ((I)weight < high));
  }
  std::fill(to + packed, to + packed + kLanes, 0.0f);
  return packed;
}

// Bits that the border is looked for below the heaviest at a time: mostly it is not far from them.
constexpr int32_t kReach = 8 << 23;  // weights 2⁸ apart

// What one thread needs for a row, kept from row to row.
struct Scratch {
  std::vector<float> weights, candidates;
  std::vector<double> until;  // the mass of all blocks up to each

  void make_room(int64_t width) {
    const size_t padded = (width + kLanes - 1) / kLanes * kLanes;
    if (weights.size() >= padded) return;
    weights.resize(padded), candidates.resize(padded + kLanes), until.resize((width + kSumBlock - 1) / kSumBlock);
  }
};

// Leaves out all but the fewest heaviest that are `wanted` tokens, or have that mass together; of equal ones the first
// are kept. Returns the share of what is left. low: a border from which on there is enough, or all that there is; then
// the one that was found.
static Share keep_heaviest(Scratch& scratch, int64_t width, double wanted, bool is_mass, int32_t& low) {
  const auto measure = [is_mass](const Share& share) {
    return is_mass ? share.mass : static_cast<double>(share.count);
  };
  const float* candidates = scratch.weights.data();
  int64_t left = width;
  // Of what is no candidate any more because it is kept; and of the candidates, those from `low` and from `high` on.
  Share above, from_low{width, 0}, from_high;
  for (int32_t high = bits_of(1.0f) + 1; high - low > 1;) {
    const int32_t middle = std::max(low + (high - low) / 2, high - kReach);
    const Share from = share_from(candidates, left, middle);
    if (measure(above) + measure(from) >= wanted) low = middle, from_low = from;
    else high = middle, from_high = from;
    if (from_low.count - from_high.count > left / 2) continue;
    left = pack_between(candidates, left, low, high, scratch.candidates.data());
    candidates = scratch.candidates.data();
    above.count += from_high.count, above.mass += from_high.mass;
    from_low.count = left, from_high = {};
  }
  above.count += from_high.count, above.mass += from_high.mass;
  const double weight = of_bits(low), each = is_mass ? weight : 1;
  const int64_t equal = share_from(candidates, left, low).count - from_high.count;
  const auto needed = static_cast<int64_t>(std::ceil((wanted - measure(above)) / each));
  const int64_t kept = std::min(std::max<int64_t>(needed, 1), equal);
  float* weights = scratch.weights.data();
  for (int64_t i = width, excess = equal - kept; excess > 0;) {
    if (bits_of(weights[--i]) == low) weights[i] = 0, --excess;
  }
  return {above.count + kept, above.mass + kept * weight};
}

// The first token at which the cumulated weights from the border on pass `number` times their total.
static int64_t drawn(Scratch& scratch, int64_t width, int32_t border, double number) {
  const float* weights = scratch.weights.data();
  std::vector<double>& until = scratch.until;
  const int64_t blocks = (width + kSumBlock - 1) / kSumBlock;
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t start = block * kSumBlock;
    total += share_from(weights + start, std::min(kSumBlock, width - start), border).mass;
    until[block] = total;
  }
  const double target = number * total;
  const auto found = std::upper_bound(until.begin(), until.begin() + blocks, target);
  const int64_t block = std::min<int64_t>(found - until.begin(), blocks - 1);
  double sum = block == 0 ? 0 : until[block - 1];
  // The block's own sum can fall short of what it counted by a rounding: then it is the last one that was kept.
  int64_t token = 0;
  for (int64_t i = block * kSumBlock; i < std::min((block + 1) * kSumBlock, width) && sum <= target; ++i) {
    if (bits_of(weights[i]) >= border) token = i, sum += weights[i];
  }
  return token;
}

// Top-k, top-p and min-p, one after the other, then the draw. The weights are there, and `total` is their sum.
static int64_t filter_and_draw(Scratch& scratch, int64_t width, const Draw& draw, double total) {
  int32_t border = 1;
  if (draw.top_k > 0 && draw.top_k < width) {
    total = keep_heaviest(scratch, width, static_cast<double>(draw.top_k), false, border).mass;
  }
  if (draw.top_p < 1) {
    // All that are lighter have, together, less than what may be left out, however it is rounded.
    const auto negligible = static_cast<float>((1 - draw.top_p) * total / width / 2);
    border = std::max(border, bits_of(negligible));
    keep_heaviest(scratch, width, draw.top_p * total, true, border);
  }
  return drawn(scratch, width, std::max(border, bits_of(static_cast<float>(draw.min_p))), draw.number);
}

// The likeliest token and the normaliser.
struct Summary {
  int64_t place;
  double normaliser;
};

// Logits up to this size are summed as e^x without a shift, and exactly enough.
constexpr float kUsual = 30.0f;

// By the peaks, found here where they are not given; false where they say too little.
static bool is_summed(const float* x, int64_t width, const Peak* peaks, Summary& summary) {
  float largest = -INFINITY;
  double total = 0;
  for (int64_t n = 0; n < width; n += kPeakLogits) {
    const Peak peak = peaks == nullptr ? peak_of(x + n, width - n) : peaks[n / kPeakLogits];
    if (peak.largest > largest) largest = peak.largest, summary.place = n;
    total += peak.total;
  }
  // A logit that is no number makes a total that is none.
  if (!(std::fabs(largest) <= kUsual) || !std::isfinite(total)) return false;
  while (x[summary.place] != largest) ++summary.place;
  summary.normaliser = std::log(total);
  return true;
}

static Summary summary_of(const float* x, int64_t width, const Peak* peaks) {
  Summary summary;
  if (is_summed(x, width, peaks, summary)) return summary;
  summary.place = place_of_largest(x, width);
  if (summary.place == kNoPlace) return summary;
  const float peak = x[summary.place];
  // No token depends on this one: it is as fast as the instructions allow.
  summary.normaliser = peak + std::log(weigh<fma>(x, width, peak, 1, nullptr));
  return summary;
}

static Chosen chosen_from(const float* x, int64_t width, const Draw& draw, const Peak* peaks, Scratch& scratch) {
  const Summary summary = summary_of(x, width, peaks);
  int64_t token = summary.place;
  if (token == kNoPlace) return {0, NAN, NAN};
  if (draw.temperature > 0) {
    scratch.make_room(width);
    const double total =
        weigh<multiply_then_add>(x, width, x[token], draw.temperature, scratch.weights.data());
    token = filter_and_draw(scratch, width, draw, total);
  }
  return {token, x[token] - summary.normaliser, summary.normaliser};
}

static void choose(const ChooseJob& job, int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  for (int64_t m = begin; m < end; ++m) {
    const Peak* peaks = job.peaks == nullptr ? nullptr : job.peaks + m * job.peak_stride;
    job.chosen[m] = chosen_from(job.logits + m * job.stride, job.width, job.draws[m], peaks, scratch);
  }
}
