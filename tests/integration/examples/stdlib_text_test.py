"""examples/stdlib_text: lines and windows of the standard library."""

from examples import stdlib_text


def test_lines_are_between_line_breaks_and_padded_with_zeros():
  lines = stdlib_text.lines('test', 82)
  for row in lines[:50]:
    text = stdlib_text.decode(row)
    assert text.startswith('\n') and text.strip('\0\n')
    assert '\0' not in text.rstrip('\0')


def test_windows_are_the_text():
  text = stdlib_text.read('test')
  found = stdlib_text.windows('test', 50)
  assert stdlib_text.decode(found[3]) == text[150:200]
  assert len(found) == len(text) // 50


def test_no_module_is_both_learned_and_tested():
  train, test = (set(names.split()) for names in stdlib_text.MODULES.values())
  assert not train & test
