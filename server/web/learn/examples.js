// What the lessons begin with. The braces hold JSON, which docs/learn_site.py reads: a copy of the lessons without a
// server has the answers to these requests.
export const EXAMPLES = {
  "text": "The cat sat on the mat because the cat was tired. The",
  "paging": {
    "lines": [
      "The cat sat on the mat and looked at the sea.",
      "The cat sat on the mat and looked at the dog.",
      "A bird sang in the tree."
    ],
    "max_tokens": 8,
    "max_num_seqs": 8,
    "max_batch_tokens": 64,
    "block_sizes": [1, 2, 4, 8, 16],
    "block_size": 4,
    "pools": [32, 48, 64, 96, 128],
    "pool": 96
  },
  "batching": {
    "requests": [[4, 6], [4, 20], [4, 9], [4, 14], [60, 5], [4, 17], [4, 8], [4, 11]],
    "choices": {
      "max_num_seqs": [1, 2, 4, 8],
      "max_batch_tokens": [8, 16, 64],
      "every": [0, 3],
      "max_inter_token_ms": [null, 30]
    },
    "chosen": { "max_num_seqs": 4, "max_batch_tokens": 64, "every": 0, "max_inter_token_ms": null },
    "step_ms": 10,
    "token_ms": 1
  },
  "same_seed": {
    "max_tokens": 24,
    "others": 31,
    "seed": 7,
    "sampling": { "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0 }
  },
  "slow": {
    "max_tokens": 24,
    "scenarios": [
      { "name": "alone", "repeats": 1, "others": 0 },
      { "name": "with a long prompt", "repeats": 8, "others": 0 },
      { "name": "beside 31 others", "repeats": 1, "others": 31 }
    ]
  }
};
