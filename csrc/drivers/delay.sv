// A shift register.
module delay #(
    parameter int WIDTH  = 8,
    parameter int CYCLES = 1
) (
    input  logic             clk,
    input  logic [WIDTH-1:0] in,
    output logic [WIDTH-1:0] out
);
  logic [CYCLES*WIDTH-1:0] stages;
  always_ff @(posedge clk) stages <= (stages << WIDTH) | (CYCLES * WIDTH)'(in);
  assign out = stages[CYCLES*WIDTH-1-:WIDTH];
endmodule
