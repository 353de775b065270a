// A weight-stationary systolic array of N x N cells, int8 x int8 -> int32. A row of `a` enters on the left and a row of partial sums
// at the top, one of each per cycle; the sums plus the row's product with the weights leave at the bottom, 2N + 1 cycles later.
// Each cell has a spare weight: the next weights are loaded while rows still pass, and `swap` comes with the first of the new rows.
module array #(
    parameter int N = 8
) (
    input  logic               clk,
    input  logic               reset,
    input  logic               load,         // shifts the spare weights down, and `weights` into the top row
    input  logic signed [ 7:0] weights[N],
    input  logic               valid,        // a row enters
    input  logic               swap,         // the spare weights count from this row on
    input  logic signed [ 7:0] a      [N],
    input  logic signed [31:0] sums   [N],
    output logic               done,         // a row leaves
    output logic signed [31:0] results[N]
);
  // What enters cell (i, j): from the left a[i][j] and swaps[i][j], from above down[i][j] and spare[i][j].
  logic signed [ 7:0] across[N][N+1];
  logic               swaps [N][N+1];
  logic signed [31:0] down  [N+1][N];
  logic signed [ 7:0] spare [N+1][N];

  for (genvar i = 0; i < N; i++) begin : g_row
    // Row i is late by i cycles, so that each element meets the sum that comes from above.
    delay #(.WIDTH(9), .CYCLES(i + 1)) left (.clk, .in({swap, a[i]}), .out({swaps[i][0], across[i][0]}));
    delay #(.WIDTH(32), .CYCLES(i + 1)) top (.clk, .in(sums[i]), .out(down[0][i]));
    delay #(.WIDTH(32), .CYCLES(N - i)) bottom (.clk, .in(down[N][i]), .out(results[i]));
    assign spare[0][i] = weights[i];

    for (genvar j = 0; j < N; j++) begin : g_column
      logic signed [7:0] weight;
      wire signed [7:0] current = swaps[i][j] ? spare[i+1][j] : weight;
      always_ff @(posedge clk) begin
        if (load) spare[i+1][j] <= spare[i][j];
        weight <= current;
        across[i][j+1] <= across[i][j];
        swaps[i][j+1] <= swaps[i][j];
        down[i+1][j] <= down[i][j] + 32'(across[i][j]) * 32'(current);
      end
    end
  end

  logic [2*N:0] passing;
  always_ff @(posedge clk) passing <= reset ? '0 : (passing << 1) | (2 * N + 1)'(valid);
  assign done = passing[2*N];
endmodule
