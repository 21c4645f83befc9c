/* Classifies one image by an export of configs/digits.gin, without Python. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tensorflow/c/c_api.h"

static void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  exit(1);
}

static void check(const TF_Status* status, const char* name) {
  const char* text = TF_Message(status); /* at times of several lines */
  if (TF_GetCode(status) == TF_OK) return;
  fail("%s: %.*s", name, (int)strcspn(text, "\n"), text);
}

static TF_Output find(TF_Graph* graph, const char* name) {
  TF_Output found = {TF_GraphOperationByName(graph, name), 0};
  if (!found.oper) fail("%s is no operation of the export", name);
  int outputs = TF_OperationNumOutputs(found.oper);
  if (!outputs || TF_OperationOutputType(found) != TF_FLOAT)
    fail("operation %s does not give float32", name);
  return found;
}

int main(int argc, char** argv) {
  const char* usage = "usage: %s EXPORT_DIR IMAGE_FILE [INPUT [OUTPUT]]\n";
  if (argc < 3 || argc > 5) return fprintf(stderr, usage, argv[0]), 2;
  FILE* file = fopen(argv[2], "r");
  if (!file) fail("%s cannot be opened", argv[2]);
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tag = "serve";
  TF_Session* session = TF_LoadSessionFromSavedModel(
      options, NULL, argv[1], &tag, 1, graph, NULL, status);
  check(status, argv[1]);
  TF_Output in = find(graph, argc > 3 ? argv[3] : "serving_default_inputs");
  TF_Output out = find(graph, argc > 4 ? argv[4] : "StatefulPartitionedCall");
  int64_t shape[16] = {0}; /* batch, features... */
  long size = 1, count = 0;
  int rank = TF_GraphGetTensorNumDims(graph, in, status), matched;
  if (rank < 1 || rank > 16) fail("the input is no batch of examples");
  TF_GraphGetTensorShape(graph, in, shape, rank, status);
  for (int i = 1; i < rank; ++i) size *= shape[i] < 0 ? 0 : shape[i];
  if (!size) fail("the export leaves open how long an example is");
  shape[0] = 1;
  TF_Tensor* image = TF_AllocateTensor(TF_FLOAT, shape, rank, 4 * size);
  for (float number; (matched = fscanf(file, "%f", &number)) == 1; ++count)
    if (count < size) ((float*)TF_TensorData(image))[count] = number;
  if (ferror(file)) fail("%s cannot be read", argv[2]);
  if (matched == 0) fail("%s has other things than numbers", argv[2]);
  if (count != size)
    fail("%s has %ld numbers; the export takes %ld", argv[2], count, size);
  TF_Tensor* outputs = NULL;
  TF_SessionRun(session, NULL, &in, &image, 1, &out, &outputs, 1, NULL, 0, NULL,
                status);
  check(status, "the export failed");
  const float* values = TF_TensorData(outputs);
  long classes = TF_TensorElementCount(outputs), best = 0;
  for (long i = 1; i < classes; ++i)
    if (values[i] > values[best]) best = i;
  printf("%ld\n", best);
  for (long i = 0; i < classes; ++i)
    printf("%.9g%c", values[i], i + 1 < classes ? ' ' : '\n');
  fclose(file);
  TF_DeleteTensor(outputs);
  TF_DeleteTensor(image);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
}
