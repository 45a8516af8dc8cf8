// Socket.IO as a user would have it: rooms, WebSocket only, everything else by default.
const { Server } = require("socket.io");

const io = new Server({ transports: ["websocket"] });
io.on("connection", (socket) => {
  socket.on("join", (room, done) => {
    socket.join(room);
    done();
  });
  socket.on("publish", (room, payload) => io.to(room).emit("message", payload));
});
io.listen(Number(process.argv[2]));
