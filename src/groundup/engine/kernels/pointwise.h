// Norms, rotary positions, activations, gates and sums, token by token. Included once for every level.

// Zhang and Sennrich 2019; Ba et al. 2016. Statistics in float32, of numbers already centred.
static void norm(const NormJob& job, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const float* x = job.input + m * job.input_stride;
    float* out = job.out + m * job.out_stride;
    const int64_t own = m % job.weights * job.width;
    float mean = 0;
    if (job.centred) {
      F sums[kChains] = {};
      each_chained(job.width, [&](int64_t i, auto left, int chain) __attribute__((always_inline)) {
        sums[chain] += load(x + i, left);
      });
      mean = reduce_add(total_of(sums)) / job.width;
    }
    F squares[kChains] = {};
    each_chained(job.width, [&](int64_t i, auto left, int chain) __attribute__((always_inline)) {
      F centred = load(x + i, left) - mean;
      if (left < W) centred = lanes() < static_cast<int32_t>(left) ? centred : F{};
      squares[chain] = fma(centred, centred, squares[chain]);
    });
    const float scale = 1.0f / std::sqrt(reduce_add(total_of(squares)) / job.width + job.eps);
    const float more = job.plus_one ? 1.0f : 0.0f;
    each_vector(job.width, [&](int64_t i, auto left) __attribute__((always_inline)) {
      F y = (load(x + i, left) - mean) * scale;
      if (job.weight != nullptr) y *= load(job.weight + own + i, left) + more;
      if (job.bias != nullptr) y += load(job.bias + own + i, left);
      store(out + i, y, left);
    });
  }
}

// Su et al. 2021, section 3.4.2.
static void turn_neighbours(float* x, const float* cosine, const float* sine, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[2 * i], second = x[2 * i + 1];
    x[2 * i] = first * cosine[i] - second * sine[i];
    x[2 * i + 1] = second * cosine[i] + first * sine[i];
  }
}

static void turn_halves(float* x, const float* cosine, const float* sine, int64_t half) {
  for (int64_t i = 0; i < half; i += W) {
    const int64_t left = half - i;
    const F first = load(x + i, left), second = load(x + half + i, left);
    const F c = load(cosine + i, left), s = load(sine + i, left);
    store(x + i, first * c - second * s, left);
    store(x + half + i, second * c + first * s, left);
  }
}

static void rope(const RopeJob& job, int64_t begin, int64_t end) {
  const int64_t half = job.dims / 2;
  const auto turn = job.interleaved ? turn_neighbours : turn_halves;
  for (int64_t m = begin; m < end; ++m) {
    const int64_t table = job.positions[m] * half;
    for (int64_t h = 0; h < job.heads; ++h) {
      turn(job.x + m * job.stride + h * job.head_dim, job.cosine + table, job.sine + table, half);
    }
  }
}

template <int32_t kKind>
INLINE F activation(F x) {
  switch (kKind) {
    case kSilu: return x * sigmoid(x);
    case kGelu: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
    case kGeluTanh: return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));  // (1 + tanh u) / 2 = sigmoid(2u)
    case kQuickGelu: return x * sigmoid(1.702f * x);
    case kRelu: return max(F{}, x);
    case kReluSquared: return max(F{}, x) * max(F{}, x);
    default: return tanh(x);
  }
}

template <int32_t kKind>
static void activate_by(const ActivateJob& job, int64_t begin, int64_t end) {
  const float limit = job.limit, blunt = 1.0f / job.sharpness;
  const bool is_bent = limit < INFINITY || job.sharpness != 1.0f || job.up_offset != 0.0f;
  for (int64_t m = begin; m < end; ++m) {
    const float* gate = job.gate + m * job.gate_stride;
    const float* up = job.up == nullptr ? nullptr : job.up + m * job.up_stride;
    each_vector(job.width, [&](int64_t i, auto left) __attribute__((always_inline)) {
      const F x = load(gate + i, left);
      const F f = !is_bent ? activation<kKind>(x)
                           : blunt * activation<kKind>(job.sharpness * (x > limit ? splat(limit) : x));
      F factor = up == nullptr ? splat(1.0f) : load(up + i, left);
      if (is_bent && up != nullptr) {
        factor = factor > limit ? splat(limit) : factor < -limit ? splat(-limit) : factor;
        factor += job.up_offset;
      }
      store(job.out + m * job.out_stride + i, f * factor, left);
    });
  }
}

static void activate(const ActivateJob& job, int64_t begin, int64_t end) {
  switch (job.activation) {
    case kSilu: return activate_by<kSilu>(job, begin, end);
    case kGelu: return activate_by<kGelu>(job, begin, end);
    case kGeluTanh: return activate_by<kGeluTanh>(job, begin, end);
    case kQuickGelu: return activate_by<kQuickGelu>(job, begin, end);
    case kRelu: return activate_by<kRelu>(job, begin, end);
    case kReluSquared: return activate_by<kReluSquared>(job, begin, end);
    default: return activate_by<kTanh>(job, begin, end);
  }
}

static void add(const AddJob& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += W) {
    const int64_t left = end - i;
    store(job.x + i, load(job.x + i, left) + load(job.y + i, left), left);
  }
}

INLINE float dot(const float* x, const float* y, int64_t count) {
  F sum = {};
  for (int64_t i = 0; i < count; i += W) sum = fma(load(x + i, count - i), load(y + i, count - i), sum);
  return reduce_add(sum);
}

static void mix(const MixJob& job, int64_t begin, int64_t end) {
  float shares[kMaxStreams];
  for (int64_t m = begin; m < end; ++m) {
    const float* weights = job.weights + job.kinds[m] * (1 + job.terms);
    float* x = job.x + m * job.width;
    for (int64_t j = 0; j < job.terms; ++j) {
      shares[j] = weights[1 + j] + (job.gates == nullptr ? 0.0f : dot(x, job.gates + j * job.width, job.width));
    }
    for (int64_t i = 0; i < job.width; i += W) {
      const int64_t left = job.width - i;
      F sum = load(x + i, left) * weights[0];
      for (int64_t j = 0; j < job.terms; ++j) {
        sum = fma(splat(shares[j]), load(job.streams + j * job.stream_stride + m * job.width + i, left), sum);
      }
      store(x + i, sum, left);
    }
  }
}

static void gate(const GateJob& job, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t h = 0; h < job.heads; ++h) {
      const float asked = dot(job.input + m * job.input_stride, job.weight + h * job.channels, job.channels);
      const F opened = job.factor * sigmoid(splat(asked));
      const int64_t head = (m * job.heads + h) * job.head_dim;
      for (int64_t i = 0; i < job.head_dim; i += W) {
        const int64_t left = job.head_dim - i;
        const F before = job.base == nullptr ? F{} : load(job.base + head + i, left);
        store(job.out + head + i, fma(opened, load(job.x + head + i, left), before), left);
      }
    }
  }
}

static void combine(const CombineJob& job, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t i = 0; i < job.width; i += W) {
      const int64_t left = job.width - i, at = m * job.width + i;
      F sum = job.base == nullptr ? F{} : load(job.base + at, left);
      for (int64_t c = m * job.choices; c < (m + 1) * job.choices; ++c) {
        sum = fma(splat(job.weights[c]), load(job.y + job.places[c] * job.width + i, left), sum);
      }
      store(job.out + at, sum, left);
    }
  }
}
