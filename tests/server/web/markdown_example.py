"""An answer with everything that chat models write."""

MARKDOWN = """# Title

A *word*, a **strong one**, ~~gone~~ and `code < 3`; 2 * 3 * 4 = 24 &amp; <b>no markup</b>.

1. one

2. two
   - nested

| a | b |
|:--|--:|
| 1 | 22 |

> quoted

- [x] done

```python
def double(x):
    return 2 * x
```

A [link](https://example.org/a?b=1), a [bad one](javascript:alert(1)) and $x_1^2 + \\frac{a}{b}$.

---
"""
